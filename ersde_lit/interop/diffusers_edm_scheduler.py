"""Old name of `ersde_lit.interop.diffusers.edm_scheduler`, which pipelines saved to disk still name."""

from ersde_lit.interop.diffusers.edm_scheduler import ERSDEEDMScheduler

__all__ = ["ERSDEEDMScheduler"]
