"""Prints the scores that each gloo rank finds, as JSON, a line for each number of ranks among its arguments."""

import json
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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


def work(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
    found = [None] * ranks
    dist.all_gather_object(found, scores_of(rank, ranks))
    if rank == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    for ranks in map(int, sys.argv[1:]):
        mp.start_processes(work, (ranks, tempfile.mkdtemp()), ranks, start_method="fork")  # imported once for all
