"""Old name of `ersde_lit.interop.diffusers.edm_scheduler`, which saved pipelines contain."""

from ersde_lit.interop.diffusers.edm_scheduler import *  # noqa: F403
