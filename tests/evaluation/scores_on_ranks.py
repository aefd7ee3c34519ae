"""Prints the scores that each gloo rank finds, as JSON, a line for each number of ranks among its arguments."""

import json
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import torch.distributed as dist
import torch.multiprocessing as mp
from projection import Projection, some_images

from ersde_lit.evaluation import METRICS, Scores
from ersde_lit.evaluation.reference import _measure

BATCHES = 2  # so that of three ranks one has none


def scores_of(rank: int, ranks: int) -> dict[str, float]:
    real = _measure([some_images(90, 0)], Projection(), "cpu", 1000, "real images", lambda count: None)
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
