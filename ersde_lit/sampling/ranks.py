"""Several processes as one: they begin together, fail together, and tell the first what they found."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException

CHATTY = ("fabric.utilities.distributed", "fabric.utilities.rank_zero", "pytorch.utilities.rank_zero")


def fabric(accelerator: str = "auto", devices: int = 1, num_nodes: int = 1) -> Fabric:
    """A Fabric of one process for each of `devices` devices on each node, launched; for work without collectives of
    tensors.

    Raises:
        ValueError: there is no such accelerator, or fewer devices.
    """
    # gloo, whatever the device: a rank that died is noticed at once. The others may have to wait long for a slow one.
    ranks = DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=30))
    try:
        with _quiet():
            fabric = Fabric(
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                strategy=ranks if devices * num_nodes > 1 else "auto",
            )
            fabric.launch()
            return fabric
    except (MisconfigurationException, RuntimeError) as error:
        raise ValueError(f"--accelerator {accelerator} --devices {devices}: {error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Lightning from telling of each rank's arrival."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def gather(fabric: Fabric, value: Any) -> list[Any]:
    """The values of all ranks, on all ranks.

    Raises:
        ValueError: another rank has died.
    """
    values = [value] * fabric.world_size
    if fabric.world_size > 1:
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            if fabric.global_rank:
                raise SystemExit(1) from error  # the first rank tells
            raise ValueError("another rank has died: run the same command again, it goes on from there") from error
    return values


@contextmanager
def together(fabric: Fabric) -> Iterator[None]:
    """A piece of work for all ranks, which ends when all have done theirs.

    Where it fails on some for a known reason, the first rank raises that and the others end in silence.
    """
    failure: Exception | None = None
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        failure = error
    failures = [one for one in [failure, *gather(fabric, failure)] if one is not None]  # its own with its traceback
    if failures and fabric.global_rank:
        raise SystemExit(0)
    if failures:
        raise failures[0]
