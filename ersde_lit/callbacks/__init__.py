"""Lightning callbacks: at each validation FID of samples, or PSNR and SSIM of restored images."""

from ersde_lit.callbacks.fid import FIDCallback
from ersde_lit.callbacks.restoration import RestorationCallback

__all__ = ["FIDCallback", "RestorationCallback"]
