"""Conversion of a `Source` to the arrays that `ImageArray` reads, in blocks; an interrupted one is resumed."""

import hashlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from rich.filesize import decimal

from ersde_lit.data.array import IMAGES, INFO, LABELS, ArrayInfo, read_array
from ersde_lit.data.classes import about_empty
from ersde_lit.data.source import Source
from ersde_lit.errors import UserError
from ersde_lit.files import disk_errors, locked, replacing, sha256, write_text

LOCK = ".lock"
BLOCK = 256  # images read and written at a time


def draw_held_out(count: int, size: int | None, seed: int) -> np.ndarray:
    """Indices of held-out images, int64 [size], ascending; size None: a twentieth, at most 5,000."""
    size = min(-(-count // 20), 5000) if size is None else size
    if not 0 <= size < count:
        raise UserError(f"val_size {size}: hold out 0 to {count - 1} of the {count} images")
    return np.sort(np.random.default_rng(seed).permutation(count)[:size])


def check_place(out: str | Path, source: str | Path) -> None:
    """Checks that `out` lies neither inside the data set that it is made from nor inside a converted one."""
    data = Path(source).expanduser().resolve()
    for folder in Path(out).expanduser().resolve().parents:
        if folder == data or all((folder / name).is_file() for name in (INFO, IMAGES)):
            raise UserError(f"{out} would lie inside the data set {folder}: choose a place outside it")


def is_finished(source: Source, out: str | Path, held_out: np.ndarray) -> bool:
    """Whether `out` is what `convert` would make; raises UserError where it is, but damaged."""
    folder = Path(out).expanduser()
    try:
        info = ArrayInfo.read(folder)
    except ValueError:
        return False
    if not info.sha256 or replace(info, sha256={}) != plan_of(source, held_out):
        return False
    read_array(folder)
    return True


def convert(
    source: Source,
    out: str | Path,
    held_out: np.ndarray,
    advance: Callable[[int], None] = lambda count: None,
    command: str = "",
    tell: Callable[[str], None] = lambda line: None,
) -> ArrayInfo:
    """Writes the images of `source`, those at `held_out` last, to the new folder `out`.

    All is written to `out`.partial, which is renamed at the end. Called again after an interruption, it goes on where
    that stopped; images written before are not read again. Where the same command finds that its data set has changed,
    it begins anew.

    Args:
        held_out: int64 [n], ascending indices into the source.
        advance: is told how many more images are in place: first those of an interrupted call.
        command: the request in words; an unfinished conversion of the same one is replaced if its data has changed.
        tell: is told so, in a line.

    Raises:
        ValueError: `out` exists; `out`.partial is being written by another process or is of another source; the disk is
            full; or `source.read` raises it.
    """
    out = Path(out).expanduser().resolve()
    order = np.concatenate([np.setdiff1d(np.arange(len(source.labels)), held_out), held_out])
    plan = replace(plan_of(source, held_out), command=command)
    work = out.with_name(f"{out.name}.partial")
    with disk_errors(work, None, "; the same command continues from there"):
        _open_work_folder(work, out)
        with locked(work / LOCK, f"{work} is being written by another process: wait for it to end"):
            _begin(work, plan, tell)
            with (work / IMAGES).open("a+b") as file:
                done = _truncate_to_images(file, plan)
                advance(done)
                for start in range(done, len(order), BLOCK):
                    block = source.read(order[start : start + BLOCK])
                    file.write(block.tobytes())
                    advance(len(block))
                file.flush()
                os.fsync(file.fileno())
            with replacing(work / LABELS) as temporary, temporary.open("wb") as file:
                np.save(file, source.labels[order].astype(np.int64))
            info = replace(plan, sha256={name: sha256(work / name) for name in (IMAGES, LABELS)})
            write_text(work / INFO, info.to_json())
            read_array(work)
        _refuse_existing(out)
        (work / LOCK).unlink(missing_ok=True)
        work.rename(out)  # after the lock is released: Windows renames no folder with an open file
    return info


def plan_of(source: Source, held_out: np.ndarray) -> ArrayInfo:
    """Content of `info.json` without the checksums."""
    return ArrayInfo(
        images=len(source.labels),
        val_images=len(held_out),
        image_shape=source.image_shape,
        num_classes=source.num_classes,
        class_names=source.class_names,
        source=hashlib.sha256(source.identity.encode() + held_out.tobytes()).hexdigest(),
        sha256={},
        notes=(*source.notes, *about_empty(source.labels, source.num_classes)),
    )


def _open_work_folder(work: Path, out: Path) -> None:
    """Makes the folder `work`; one that exists must be of an interrupted conversion."""
    _refuse_existing(out)
    work.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in work.iterdir()} - {f"{INFO}.tmp", LOCK}
    if names and INFO not in names:
        raise UserError(f"{work} is in the way and not a conversion's: move it elsewhere")


def _begin(work: Path, plan: ArrayInfo, tell: Callable[[str], None]) -> None:
    """Writes `plan` to a new folder; checks that an interrupted one has the same, or is of the same command."""
    if not (work / INFO).exists():
        needed, free = plan.images * plan.image_bytes, shutil.disk_usage(work).free
        if needed > free:
            raise UserError(f"{work} will take {decimal(needed)}, and {decimal(free)} are free")
    else:
        begun = ArrayInfo.read(work)
        if replace(begun, sha256={}) == plan:
            return
        if not plan.command or begun.command != plan.command:
            raise UserError(f"{work} is of another, unfinished conversion: finish it with its own command or delete it")
        tell(f"the data set has changed since {work} was begun: beginning anew")
        with (work / IMAGES).open("wb") as file:
            os.fsync(file.fileno())  # empty before the new plan is there
    write_text(work / INFO, plan.to_json())


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists: choose another name, or delete it first")


def _truncate_to_images(file: IO[bytes], plan: ArrayInfo) -> int:
    """Removes an incomplete last image, writes the header of a new file, and returns the number of images."""
    header = io.BytesIO()
    shape = (plan.images, *plan.image_shape)
    npy.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    head = header.getvalue()
    done = (file.seek(0, os.SEEK_END) - len(head)) // plan.image_bytes
    if done < 0:
        file.truncate(0)
        file.write(head)
        return 0
    done = min(done, plan.images)
    file.truncate(len(head) + done * plan.image_bytes)
    return done
