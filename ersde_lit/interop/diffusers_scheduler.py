"""Old name of `ersde_lit.interop.diffusers.scheduler`, which pipelines saved to disk still name."""

from ersde_lit.interop.diffusers.scheduler import ERSDEScheduler

__all__ = ["ERSDEScheduler"]
