"""Command `data`: converts a data set, and writes a configuration to train on it."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from ersde_lit.cli.parser import Parser
from ersde_lit.errors import UserError
from ersde_lit.files import check_new, disk_errors, write_text


def run(command: str, arguments: Sequence[str]) -> None:
    parser = Parser(command, str(convert_data.__doc__).partition("\n")[0])
    parser.add_options(convert_data)
    convert_data(**parser.parse_args([*arguments]).as_dict())


def convert_data(
    source: str,
    *,
    clean: str | None = None,
    out: str | None = None,
    config_out: str | None = None,
    minutes: PositiveFloat = 60.0,
    size: PositiveInt | None = None,
    channels: Literal[1, 3] | None = None,
    resize: Literal["area", "lanczos"] = "area",
    unlabelled: bool = False,
    val_size: NonNegativeInt | None = None,
    seed: int = 0,
    exif: Literal["apply", "ignore"] = "apply",
) -> None:
    """One memory-mapped array from EDM's zip or folder, npz files or folders of images, and a configuration for it.

    Args:
        source: the data set; or a converted folder, to be checked.
        clean: folder of the clean images of those in the folder source, of equal names and sizes; OUT/degraded and
            OUT/clean are made then, without classes, for ersde_lit.data.ImagePairs.
        out: the new folder, for ersde_lit.data.ImageArray; the same command resumes after an interruption.
        config_out: YAML file to write, for `fit --config`, its network and epochs sized to the images by timed steps.
        minutes: how long that training may take on this machine.
        size: pixels along the side of an image; 64 if not given, or the images' own with clean.
        channels: 3 for RGB, 1 for grey; 3 if not given, or the images' own with clean.
        resize: of images that are not of this size; area averages pixels, lanczos does as EDM's data tool.
        unlabelled: leave classes out; any folder or zip of images will do then.
        val_size: images to hold out for validation; a twentieth, but no more than 5000, if not given.
        seed: of the choice of held-out images.
        exif: apply turns images as their EXIF orientation says; ignore does not, as EDM's data tool and torchvision.
    """
    for place in filter(None, (source, clean)):
        if not Path(place).expanduser().exists():
            raise UserError(f"there is no file or folder {place}")
    if clean is not None and (out is None or config_out is not None):
        raise UserError("--clean needs --out, and --config_out is not for pairs: leave it out")
    if config_out is not None:
        if val_size == 0:
            raise UserError("--config_out is for a training that is validated: leave --val_size 0 out")
        config_out = str(Path(config_out).expanduser())
        with disk_errors(config_out, "config_out"):
            Path(config_out).parent.mkdir(parents=True, exist_ok=True)
        check_new(config_out, "config_out")
    if out is None:
        from ersde_lit.data.array import check_array, is_converted

        if not is_converted(Path(source).expanduser()):
            raise UserError(f"--out is missing ({source} has not been converted, so there is nothing to check)")
        info = check_array(source)
        print(f"{source} is complete: {info.images} images {info.image_shape}, {info.num_classes} classes")
    else:
        how = {"resize": resize, "unlabelled": unlabelled, "val_size": val_size, "seed": seed, "exif": exif}
        if clean is None:
            _convert(source, out, {"size": size or 64, "channels": channels or 3, **how})
        else:
            _convert_pairs(source, clean, out, {"size": size, "channels": channels, **how})
    if config_out is not None:
        _configure(source if out is None else out, config_out, minutes)


def _convert_pairs(degraded: str, clean: str, out: str, how: dict[str, Any]) -> None:
    from ersde_lit.data.convert import check_place
    from ersde_lit.data.image_files import pair_shapes

    shapes = {*pair_shapes(degraded, clean).values()}
    check_place(out, clean)
    channels, height, width = min(shapes)
    of_both_colours = how["channels"] is None and len({shape[0] for shape in shapes}) > 1
    if of_both_colours or (how["size"] is None and (len(shapes) > 1 or height != width)):
        raise UserError(
            "the images are not all squares of one size and colour: give --size and --channels, which resizes them, or "
            "train on the two folders as they are (ImagePairs with crop)"
        )
    how = how | {"size": how["size"] or height, "channels": how["channels"] or channels, "unlabelled": True}
    for name, source in (("degraded", degraded), ("clean", clean)):  # of equal names, so in one order
        _convert(source, f"{out}/{name}", how)


def _convert(source: str, out: str, how: dict[str, Any]) -> None:
    from ersde_lit.data.classes import about_names
    from ersde_lit.data.convert import check_place, convert, draw_held_out, is_finished
    from ersde_lit.data.opening import open_source
    from ersde_lit.progress import progress

    check_place(out, source)
    opened = open_source(source, **{name: how[name] for name in ("size", "channels", "resize", "unlabelled", "exif")})
    held_out = draw_held_out(len(opened.labels), how["val_size"], how["seed"])
    if is_finished(opened, out, held_out):
        print(f"{out} is finished: nothing to do")
        return
    done = [0]
    command = " ".join([f"data {Path(source).expanduser().resolve()}", *(f"--{k}={v}" for k, v in how.items())])
    with progress(lambda: sum(done), len(opened.labels)):
        info = convert(opened, out, held_out, done.append, command, print)
    for note in info.notes:
        print(f"note: {note}")
    if info.class_names:
        print(about_names(info.class_names))
    print(f"{info.images} images of {info.num_classes} classes in {out}, the last {info.val_images} of them held out")


def _configure(folder: str, config_out: str, minutes: float) -> None:
    """Writes a configuration for a converted folder."""
    from ersde_lit.data import ImageArray
    from ersde_lit.training.suggestion import suggest, to_yaml

    data = ImageArray(folder)
    train = len(data.split("train").labels)
    print("timing training steps on this machine")
    configuration, rate = suggest(
        data, {"class_path": "ersde_lit.data.ImageArray", "init_args": {"root": folder}}, minutes
    )
    trainer = configuration["trainer"]
    length = f"{trainer['max_epochs']} epochs" if "max_epochs" in trainer else f"{trainer['max_steps']} steps"
    wall = f"{length} on {train:,} images in about {minutes:g} minutes, at {rate:.3g} images/s"
    comments = [
        f"Training on {folder}: {wall} here.",
        f"Written by python -m ersde_lit data {shlex.quote(folder)} --config_out {shlex.quote(config_out)} "
        f"--minutes {minutes:g}; sigma_data was measured.",
        "horizontal_flip: true (of data) mirrors half of the training images: for pictures without writing or sides.",
    ]
    if "callbacks" in trainer:
        comments.append("FID's classifier is trained once for these images, before the minutes begin, and then cached.")
    else:
        none = "no FID: it needs two classes, or Inception's features, and two held-out images (FIDCallback)"
        comments.append(f"N{none[1:]}.")
        print(f"note: {none}")
    with disk_errors(config_out, "config_out"):
        write_text(config_out, to_yaml(configuration, comments))
    print(f"{config_out}: {wall}\n\nNext:\npython -m ersde_lit fit --config {config_out}")
