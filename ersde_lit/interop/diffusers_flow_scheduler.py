"""Old name of `ersde_lit.interop.diffusers.flow_scheduler`, which pipelines saved to disk still name."""

from ersde_lit.interop.diffusers.flow_scheduler import ERSDEFlowMatchScheduler

__all__ = ["ERSDEFlowMatchScheduler"]
