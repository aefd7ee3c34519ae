"""Old name of `ersde_lit.interop.diffusers.scheduler`, which saved pipelines contain."""

from ersde_lit.interop.diffusers.scheduler import *  # noqa: F403
