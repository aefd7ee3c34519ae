"""Options of `tune`: which tables are learned, and how."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt

from ersde_lit.cli.parser import split
from ersde_lit.errors import UserError
from ersde_lit.names import STAGES, TABLES


@dataclass(frozen=True)
class TuneOptions:
    """What is learned.

    Args:
        ckpt_path: checkpoint that `fit` wrote; its averaged weights are tuned for, and stay as they are.
        out: file of the tables, NAME.tables, written after each NFE; the same command goes on there.
        nfe: network calls an image, as in 4,5,6,8: a table for each.
        into: write a copy of the checkpoint that carries the tables, NAME.ckpt, and samples with them by default.
        like: file of earlier tables, of this network or another, from which to start where they are better.
    """

    ckpt_path: str
    out: str
    nfe: str | int | list[int] = "4,5,6,8"
    into: str | None = None
    like: str | None = None

    def __post_init__(self) -> None:
        if not self.out.endswith(TABLES):
            raise UserError(f"--out {self.out}: the file is a {TABLES}, name it so")
        if self.into is not None and Path(self.into).suffix != ".ckpt":
            raise UserError(f"--into {self.into}: the file is a .ckpt, name it so")


@dataclass(frozen=True)
class LearningOptions:
    """How it is learned.

    Args:
        stages: some of grid (levels planned by a fine run are tried), drift (levels, weights and the levels that the
            network is told) and noise (how much at which step); drift and noise are learned together.
        objective: energy: energy distance in the features, and in pixels, of equal weight, where --data gives images;
            kernel: distance in the features of moments up to the third, as KID.
        gradient_free: learn by CMA-ES (extra `tune`), where no gradient can be had or memory does not suffice.
        steps: of learning for each NFE (of gradient_free: runs of the sampler).
        minutes: of learning for each NFE at most, not of gradient_free; all steps if not given.
        batch_size: images a step, on each device.
        stopping: validation images; the table that is best on them is kept, default's own included.
        images: fresh ones that the reported distances are measured on.
        also: features to report in besides those learned in and pixels, as in efficientnet.
    """

    stages: str | list[str] = "grid,drift,noise"
    objective: Literal["energy", "kernel"] = "energy"
    gradient_free: bool = False
    steps: PositiveInt = 300
    minutes: PositiveFloat | None = None
    batch_size: PositiveInt = 200
    stopping: PositiveInt = 3000
    images: PositiveInt = 2000
    also: str | list[str] | None = None

    def __post_init__(self) -> None:
        if not self.chosen or {*split(self.stages)} - {*STAGES}:
            raise UserError(f"--stages {self.stages}: choose some of {','.join(STAGES)}")
        for name in ("images", "batch_size", "stopping"):
            if getattr(self, name) < 2:
                raise UserError(f"--{name} 1: distances need at least two images")
        if self.gradient_free and self.minutes is not None:
            raise UserError("--gradient_free is limited by --steps, runs of the sampler: leave --minutes out")

    @property
    def chosen(self) -> list[Any]:
        """Names of the stages, in their order."""
        return [stage for stage in STAGES if stage in split(self.stages)]
