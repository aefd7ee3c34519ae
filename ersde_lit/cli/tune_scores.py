"""Scores that `tune` reports: default, its rivals and the learned table on fresh seeds, in features and in pixels."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ersde_lit.cli.guided_model import GuidedModel
from ersde_lit.cli.options.reference import ReferenceOptions
from ersde_lit.cli.options.sampler import SamplerOptions
from ersde_lit.cli.tune_file import PIXELS, TablesFile
from ersde_lit.data import ImageDataModule
from ersde_lit.errors import UserError
from ersde_lit.metrics import Features, Scores
from ersde_lit.metrics.choice import features_and_reference
from ersde_lit.metrics.protocol import statistics_in_brief
from ersde_lit.ranks import Ranks
from ersde_lit.solvers import SavedTables
from ersde_lit.sweeps.sheet import Sheet
from ersde_lit.tuning import EnergyDistance

LEARNED = "learned"
RIVALS = ("default", "noisy", "dpm++2m", "unipc2", "sde_dpm++2m", "deis", "ipndm")
MEASURES = {"fid": "Frechet distance", "kid": "kernel distance"}
REAL = 2000  # images whose pixels are compared with


@dataclass(frozen=True)
class Judges:
    """Metrics of samples in one or more features and in pixels, all against the same real images.

    Attributes:
        model: which samples.
        scores: of the features that are learned in, then of others.
        real: pixels of real images, 0 to 255, [REAL, D]; None where these are not at hand.
        count: images a sampler, of the seeds from 0 on.
    """

    model: GuidedModel
    scores: Sequence[Scores]
    real: Tensor | None
    count: int
    ranks: Ranks

    @classmethod
    def of(
        cls, model: GuidedModel, data: ImageDataModule | None, reference: ReferenceOptions,
        also: Sequence[str], count: int, ranks: Ranks,
    ) -> "Judges":  # fmt: skip
        """Prepares all of it; to be called by all ranks."""
        found = []
        for k, features in enumerate([reference.open_features(), *also]):
            weights = reference.weights if k == 0 else None
            choice: Any = features
            net, real = features_and_reference(
                choice, data, weights, reference.reference, ["fid", "kid"], ranks, reference.exif
            )
            if real.features is None:
                raise UserError(
                    f"--reference {reference.reference} has statistics alone, and learning needs features: give --data "
                    "or images, or make it anew by `reference ... --keep_features 10000`"
                )
            found.append(Scores(net, real, ["fid", "kid"], sync=False).to(ranks.device))
        return cls(model, found, None if data is None else _pixels(data), count, ranks)

    @property
    def learned_in(self) -> tuple[Features, Tensor]:
        """Features, and those of real images."""
        kept = self.scores[0].reference.features
        assert kept is not None
        return self.scores[0].features, kept

    @property
    def described(self) -> dict[str, Any]:
        """Data and features that are learned in."""
        features, real = self.scores[0].features, self.scores[0].reference
        return {
            "data": real.description,
            "statistics": statistics_in_brief(real.statistics),
            "features": features.description,
            "fingerprint": features.fingerprint,
        }

    @cached_property
    def pixels(self) -> Callable[..., Tensor] | None:
        """Energy distance of bytes [B, D] to `real`."""
        return None if self.real is None else EnergyDistance(torch.Tensor.float, self.real)

    @property
    def names(self) -> set[str]:
        """Descriptions of all features, and of pixels."""
        return {scores.features.description for scores in self.scores} | (set() if self.real is None else {PIXELS})

    def of_nfe(self, nfe: int, tables: SavedTables) -> list[dict[str, Any]]:
        """Scores of all samplers at this NFE, on all ranks."""
        samplers: dict[str, Any] = {}
        for name in RIVALS:
            samplers[name], _ = SamplerOptions(nfe=nfe, solver=name).sampler(self.model.denoiser)
        samplers[LEARNED] = tables.sampler
        found = []
        for name, sampler in samplers.items():
            for measure, features, value in self._measured(nfe, sampler):
                score = {"sampler": name, "nfe": nfe, "images": self.count, "measure": measure}
                found.append({**score, "features": features, "value": value})
        return found

    def _measured(self, nfe: int, sampler: Any) -> list[tuple[str, str, float | None]]:
        """Measure, features and value, None where a sample was not finite; each rank makes its share of the images."""
        ranks, seeds = self.ranks, range(self.count)
        job = self.model.job(sampler, nfe, seeds)
        mine: Any = seeds[ranks.rank :: ranks.count]
        try:
            made: Tensor | None = job.images(mine, self.model.machine.batch_size) if mine else None
            failed = False
        except FloatingPointError:
            made, failed = None, True
        parts = ranks.gather((made, failed))
        images = None if any(bad for _, bad in parts) else torch.cat([part for part, _ in parts if part is not None])
        found = []
        for scores in self.scores:
            found += [(MEASURES[name], scores.features.description, value) for name, value in _scores(scores, images)]
        if self.pixels is not None:
            value = None if images is None else float(self.pixels(images.flatten(1), None, None))
            found.append(("energy distance", PIXELS, value))
        return found


def show(file: TablesFile, nfes: Sequence[int], images: int) -> None:
    """Prints a table a measure: a row a sampler, a column an NFE, the best in bold."""
    console = Console(soft_wrap=True)
    shown = [score for score in file.scores if score["nfe"] in nfes]
    for measure, features in dict.fromkeys((score["measure"], score["features"]) for score in shown):
        value = {
            (score["sampler"], score["nfe"]): math.nan if score["value"] is None else score["value"]
            for score in shown
            if (score["measure"], score["features"]) == (measure, features)
        }
        finite = {key: v for key, v in value.items() if not math.isnan(v)}
        best = {nfe: min((v for (_, n), v in finite.items() if n == nfe), default=math.nan) for nfe in nfes}
        rows = []
        for name in (*RIVALS, LEARNED):
            cells = [(value.get((name, nfe), math.nan), nfe) for nfe in nfes]
            rows.append([name, *(f"**{v:.4g}**" if v == best[nfe] else f"{v:.4g}" for v, nfe in cells)])
        of = f"{measure[0].upper()}{measure[1:]} of {images:,} samples to {file.facts['data']}"
        heading = f"{of}, {features}" + (" (learned in these)" if file.learned_in(features) else "")
        console.print(Sheet(heading, ["sampler", *(f"NFE {nfe}" for nfe in nfes)], rows).table())


def _scores(scores: Scores, images: Tensor | None) -> list[tuple[str, float | None]]:
    if images is None:
        return [(name, None) for name in scores.metrics]
    scores.reset()
    scores.update(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few images: the heading says how many
        return [(name, value if math.isfinite(value) else None) for name, value in scores.compute().items()]


def _pixels(data: ImageDataModule) -> Tensor:
    real = data.split("train").images
    chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:REAL]
    return real[chosen].flatten(1).float()
