"""Ranks: the processes of a distributed run, which start, exchange objects and fail together."""

import atexit
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException

from ersde_lit.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

CHATTY = ("fabric.utilities.distributed", "fabric.utilities.rank_zero", "pytorch.utilities.rank_zero")
CPU = torch.device("cpu")
PATIENCE = timedelta(days=30)  # with a rank at work; one that died is noticed at once


@atexit.register
def leave() -> None:
    """Ends the process group before Python ends: its threads may abort a process (exit code 134) that leaves them."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning's messages, such as those about each rank's start."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(max(logger.level, logging.WARNING))
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True)
class Ranks:
    """Rank of this process, with collectives of Python objects, which all ranks must call.

    Attributes:
        rank, count: number of this process, and of processes.
        group: gloo process group, which waits for a slow rank; None: the default one.
        device, local_rank: of this process, and its number on its node, as `start` and `beside` know them.
    """

    rank: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None
    device: torch.device = CPU
    local_rank: int = 0

    @classmethod
    def start(cls, accelerator: str = "auto", devices: int = 1, num_nodes: int = 1) -> "Ranks":
        """Starts a process for each of `devices` devices a node, for work without tensor collectives.

        Raises:
            ValueError: there is no such accelerator, or fewer devices.
        """
        several = DDPStrategy(process_group_backend="gloo", timeout=PATIENCE)  # gloo, whatever the device
        try:
            with quiet():
                fabric = Fabric(
                    accelerator=accelerator,
                    devices=devices,
                    num_nodes=num_nodes,
                    strategy=several if devices * num_nodes > 1 else "auto",
                )
                fabric.launch()
        except (MisconfigurationException, RuntimeError) as error:
            raise UserError(f"--accelerator {accelerator} --devices {devices}: {error}") from None
        return cls(fabric.global_rank, fabric.world_size, None, fabric.device, fabric.local_rank)

    @classmethod
    def here(cls) -> "Ranks":
        """Ranks of the default process group; a single rank where none was started."""
        started = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if started else cls()

    @classmethod
    def beside(cls, trainer: "Trainer") -> "Ranks":
        """Ranks of a trainer, in a group of their own whose timeout lets one rank work alone for long."""
        if trainer.world_size == 1:
            return cls(device=trainer.strategy.root_device)
        group: Any = dist.new_group(timeout=PATIENCE, backend="gloo")
        return cls(trainer.global_rank, trainer.world_size, group, trainer.strategy.root_device, trainer.local_rank)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on all ranks.

        Raises:
            ValueError: another rank has died.
        """
        values = [value] * self.count
        with self._alive():
            if self.count > 1:
                dist.all_gather_object(values, value, **self._through)
        return values

    def of_first(self, value: Any) -> Any:
        """The first rank's value, on all ranks; raises ValueError as `gather` does."""
        values = [value]
        with self._alive():
            if self.count > 1:
                dist.broadcast_object_list(values, 0, **self._through)
        return values[0]

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Waits at its end for all ranks.

        Where the block failed on some for a known reason, the first rank raises that error, and the others a SystemExit
        with it as cause.
        """
        failure: Exception | None = None
        try:
            yield
        except (ValueError, OSError, FloatingPointError) as error:
            failure = error
        known = next((one for one in self.gather(failure) if one is not None), None)
        if known is not None and self.rank:
            raise SystemExit(0) from known
        if known is not None:
            raise failure or known  # its own with its traceback

    @property
    def _through(self) -> dict[str, Any]:
        return {} if self.group is None else {"group": self.group}

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if self.rank:
                raise SystemExit(1) from error  # the first rank tells
            raise UserError("another rank has died: run the same command again, it goes on from there") from error
