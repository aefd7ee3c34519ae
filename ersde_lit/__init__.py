"""Train diffusion denoisers with PyTorch Lightning, sample them with ER-SDE-Solvers.

`import ersde_lit` is light: a room (`ersde_lit.solvers`, `ersde_lit.training`, ...) is imported when it is first named.
"""

from importlib import import_module
from typing import Any

_ROOMS = (
    "solvers", "networks", "denoisers", "data", "metrics", "analysis", "sampling", "training", "callbacks", "sweeps",
    "tuning", "interop",
)  # fmt: skip
__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name == "__version__":
        return import_module("importlib.metadata").version("ersde-lit")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
