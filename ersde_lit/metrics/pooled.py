"""Base class of metrics whose states are added up over ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torchmetrics import Metric


class Pooled(Metric):
    """A torchmetrics metric whose states are added up over the ranks.

    Args:
        sync: whether `compute` adds up at all.
        group: of torch.distributed, that does; None: the default one.
    """

    full_state_update = False

    def __init__(self, sync: bool = True, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(sync_on_compute=sync, process_group=group)

    def over_ranks(self) -> Any:
        """`compute` over all ranks, which all call it; on the CPU, also what it returns, where the backend is gloo."""
        home = self.device
        if self.sync_on_compute and dist.is_initialized() and dist.get_backend(self.process_group) == "gloo":
            self.to("cpu")
        try:
            return self.compute()
        finally:
            self.to(home)


def with_float64(device: torch.device | str) -> torch.device | str:
    """The device, or the CPU in place of an Apple GPU, which has no float64."""
    return "cpu" if torch.device(device).type == "mps" else device
