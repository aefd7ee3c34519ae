"""Train diffusion denoisers with PyTorch Lightning, sample them with ER-SDE-Solvers.

`import ersde_lit` is light: the rooms (`ersde_lit.solvers`, `.networks`, `.denoisers`, `.data`, `.training`,
`.sampling`, `.evaluation`) are imported when they are first named.
"""

from importlib import import_module, metadata
from types import ModuleType

__version__ = metadata.version("ersde-lit")

_ROOMS = ("solvers", "networks", "denoisers", "data", "training", "sampling", "evaluation")
__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
