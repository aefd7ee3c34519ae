"""Switch for TF32, the float32 arithmetic of NVIDIA's tensor cores with 10 bits of mantissa; off by default."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


@contextmanager
def tf32(allowed: bool = False) -> Iterator[None]:
    """Matrix products and convolutions of float32 in TF32, or in all of float32, whatever is chosen outside of it.

    By default torch lets convolutions have TF32. Also rules what `torch.set_float32_matmul_precision` allows a CPU.
    """
    before = {name: switch.fp32_precision for name, switch in _switches().items()}
    matmul, cudnn = None, None
    with suppress(RuntimeError):  # torch refuses to read the older switches after somebody has set the newer ones
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
    _set("high" if allowed else "highest", allowed, dict.fromkeys(before, "tf32" if allowed else "ieee"))
    try:
        yield
    finally:
        _set(matmul, cudnn, before)


def _switches() -> dict[str, Any]:
    """Those of torch 2.9 and later, which stand beside the older ones; none before."""
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return {}
    of_mkldnn = {f"mkldnn.{name}": getattr(backends.mkldnn, name) for name in ("matmul", "conv", "rnn")}
    return {"matmul": backends.cuda.matmul, "conv": backends.cudnn.conv, "rnn": backends.cudnn.rnn, **of_mkldnn}


def _set(matmul: str | None, cudnn: bool | None, newer: dict[str, str]) -> None:
    """The older switches first: they set the newer ones too."""
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)
    if cudnn is not None:
        torch.backends.cudnn.allow_tf32 = cudnn
    for name, switch in _switches().items():
        switch.fp32_precision = newer[name]
