"""Old name of `ersde_lit.interop.diffusers.flow_scheduler`, which saved pipelines contain."""

from ersde_lit.interop.diffusers.flow_scheduler import *  # noqa: F403
