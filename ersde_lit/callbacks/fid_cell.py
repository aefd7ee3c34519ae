"""Sampling and measurement of one cell: one sampler at one NFE."""

import math
from collections.abc import Iterator, Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ersde_lit.callbacks.fid_real import mean_over_ranks
from ersde_lit.denoisers import Denoiser
from ersde_lit.metrics.nearest import nearest_distances
from ersde_lit.metrics.scores import Scores
from ersde_lit.ranks import Ranks
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import Sampler

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def precision_of(trainer: Trainer) -> str:
    """Precision of the network while it is sampled: that of training, by autocast, as averages are float32."""
    return {"bf16": "bf16", "16": "fp16", "64": "fp64"}.get(str(trainer.precision).partition("-")[0], "fp32")


def sample_images(
    trainer: Trainer, denoiser: Denoiser, sampler: Sampler, seeds: Sequence[int], nfe: int, batch_size: int,
    labels: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """uint8 [B, C, H, W]; raises FloatingPointError where one is not finite."""
    dtype = DTYPES.get(precision_of(trainer), torch.float32)
    with torch.autocast(trainer.strategy.root_device.type, dtype, enabled=dtype != torch.float32):
        made = generate(denoiser, sampler, seeds, nfe, labels, batch_size=batch_size)
        return torch.cat([quantise(block.images) for block in made])


def measure_cell(
    blocks: Iterator[tuple[Tensor, int]], scores: Scores, train_images: Tensor | None, ranks: Ranks
) -> tuple[dict[str, float], str]:
    """Metrics over all ranks, by name, and why they are NaN where a sample of any rank is not finite, else "".

    Args:
        blocks: this rank's images, and of how many from the first on in each the nearest training image is sought.
        train_images: where it is sought; None: nowhere, and "nearest" is not among the metrics.
    """
    failure, nearest = "", torch.empty(0, device=scores.moments.device)
    scores.reset()
    with ranks.fail_together():
        try:
            for images, leading in blocks:
                scores.update(images)
                if leading and train_images is not None:
                    nearest = torch.cat([nearest, nearest_distances(images[:leading], train_images)])
        except FloatingPointError as error:
            failure = str(error)
    failure = next(filter(None, ranks.gather(failure)), "")
    if failure:
        names = scores.metrics if train_images is None else (*scores.metrics, "nearest")
        return dict.fromkeys(names, math.nan), failure
    values = scores.compute()
    return (values if train_images is None else values | {"nearest": mean_over_ranks(nearest, ranks)}), ""
