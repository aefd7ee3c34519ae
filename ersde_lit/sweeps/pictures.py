"""Pictures of the first images of each cell, which stay when its images are deleted."""

import json
from pathlib import Path
from typing import NamedTuple

from ersde_lit.errors import UserError
from ersde_lit.files import disk_errors
from ersde_lit.metrics.image_files import image_files
from ersde_lit.sampling.description import differences
from ersde_lit.sampling.formats import META, read_meta
from ersde_lit.sampling.grid import image_grid, save_png
from ersde_lit.sampling.seeds import format_seeds, parse_seeds
from ersde_lit.sweeps.cells import Cell, Record, file_name

COLUMNS, MOST, LEAST = 4, 16, 8  # images of a picture
PIXELS = 2**18  # above, fewer images are shown


class Shown(NamedTuple):
    """A picture, and the seeds of the images in it."""

    path: Path
    seeds: str


def keep_picture(folder: Path, cell: Cell, images: Path) -> None:
    """Draws the first images of a cell, atomically, to `pictures/` in the folder of the results.

    The description of these images is kept with them, by which `find_picture` knows them again.
    """
    found = image_files(images)
    _, height, width = found.image_shape
    count = min(MOST, max(LEAST, PIXELS // (height * width)))
    first = next(iter(found.batches(count)))
    meta = json.dumps({**read_meta(images), "seeds": format_seeds(cell.seeds[:count])})
    path = _path(folder, cell.sampler, cell.job.nfe, cell.meta["seeds"])
    with disk_errors(path.parent):
        save_png(image_grid(first, COLUMNS), path, {META: meta})


def find_picture(folder: Path, record: Record) -> Shown | None:
    """The picture of a measured cell; None where there is none, or one of other images."""
    path = _path(folder, record["sampler"], record["nfe"], record["seeds"])
    try:
        meta = read_meta(path)
        shown = parse_seeds(meta["seeds"])
    except UserError:
        return None
    first = format_seeds(parse_seeds(record["seeds"])[: len(shown)])
    same = not differences({**record["description"], "seeds": first}, meta)
    return Shown(path, meta["seeds"]) if same else None


def _path(folder: Path, sampler: str, nfe: int, seeds: str) -> Path:
    return folder / "pictures" / f"{file_name(sampler, nfe, seeds)}.png"
