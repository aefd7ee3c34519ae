"""Lightning callbacks: FID of samples at each validation."""

from ersde_lit.callbacks.fid import FIDCallback

__all__ = ["FIDCallback"]
