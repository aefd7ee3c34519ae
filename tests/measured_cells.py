"""Records of cells, as an evaluation stores them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ersde_lit.metrics.protocol import Protocol
from ersde_lit.sampling.seeds import parse_seeds
from ersde_lit.sweeps.cells import REAL, Cell, Measured, record
from ersde_lit.sweeps.pictures import keep_picture

SCORES = {"features": "Edges (3)", "preprocessing": "as they are", "fingerprint": "abc", "reference": "9 images of a"}
METRICS = {"fid": "of all images", "kid": "subsets of 5", "precision": "3 neighbours"}
HOW = Protocol({**SCORES, **METRICS}, "9 images, |mu| 1, tr sigma 2", "averaged weights", "f" * 64)


def cell(sampler: str, nfe: int, seeds: str, *, asked: int | None = None, images: int = 20, **scores: float):
    description = {"seeds": seeds, "options": {"nfe": nfe, "solver": sampler}, "checkpoints": {"ckpt_path": "f" * 64},
                   "paths": {"ckpt_path": "runs/last.ckpt"}}  # fmt: skip
    of_cell = {"nfe": nfe, "asked": asked or nfe, "seeds": seeds, "description": description, "seconds": 1.5}
    return record(sampler, Measured(scores, images, ()), HOW, **of_cell)


def real(images: int = 20, **scores: float):
    return record(REAL, Measured(scores, images, ()), HOW, description={"held_out": "d" * 64})


RECORDS = [
    real(fid=0.5, precision=0.9),
    cell("a", 10, "0-19", fid=3.0, precision=0.5),
    cell("a", 10, "20-39", fid=3.2, precision=0.7),
    cell("heun", 9, "0-19", asked=10, fid=2.0, precision=0.1),
    cell("a", 20, "0-19", fid=1.0, precision=0.8),
    cell("a", 20, "20-39", fid=1.5, precision=0.8),
]


def picture_of(folder: Path, record: dict, images: np.ndarray, path: Path) -> None:
    """As an evaluation does with a cell's images, uint8 [n, H, W, C]."""
    meta = record["description"]
    np.savez(path, arr_0=images, meta=json.dumps(meta))
    job = SimpleNamespace(nfe=record["nfe"])
    keep_picture(folder, Cell(record["sampler"], job, parse_seeds(record["seeds"]), meta, record["asked"]), path)
