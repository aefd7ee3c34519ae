"""Old name of `ersde_lit.metrics` and `ersde_lit.callbacks`, for configurations and scripts that still use it."""

from ersde_lit.callbacks import FIDCallback
from ersde_lit.metrics import *  # noqa: F403

__all__ = ["FIDCallback"]
