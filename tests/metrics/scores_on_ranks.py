"""The scores that each of several gloo ranks finds. Run by test_scores.py."""

import tempfile

import torch
import torch.distributed as dist
from projection import Projection, some_images

from ersde_lit.data import ImageDataModule, Split
from ersde_lit.metrics import METRICS, Scores, reference_of
from ersde_lit.ranks import Ranks

BATCHES = 2  # so that of three ranks one has none


class Real(ImageDataModule):
    """Of two batches for these features, and six copies."""

    image_shape, num_classes = (2, 4, 4), 2

    def load(self) -> dict[str, Split]:
        images = some_images(84, 0)
        train = Split(torch.cat([images, images[:6]]), torch.zeros(90, dtype=torch.long))
        return {"train": train}


def scores_of(rank: int, ranks: int) -> dict[str, float]:
    real = reference_of(Real(), Projection(), cache=tempfile.mkdtemp(), ranks=Ranks(rank, ranks))
    assert (real.num_images, real.copies, len(real.features)) == (90, 6, 90)
    scores = Scores(Projection(), real, METRICS, keep=70)
    for images in some_images(100, 1, 30, 220).split(100 // BATCHES)[rank::ranks]:
        scores.update(images)
    values = scores.compute()
    return {**values, "images": scores.num_images}


def on_ranks() -> dict[str, float]:
    dist.init_process_group("gloo")
    return scores_of(dist.get_rank(), dist.get_world_size())
