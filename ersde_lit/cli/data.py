"""data: people's data sets to memory-mapped arrays. Its arguments are read before torch is imported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from ersde_lit.cli.parser import Parser
from ersde_lit.errors import UserError


def run(command: str, arguments: Sequence[str]) -> None:
    parser = Parser(prog=f"python -m ersde_lit {command}", description=(convert_data.__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=str, help="the data set, or a folder that was converted, to be checked")
    parser.add_function_arguments(convert_data, skip={"source", "unlabelled"})
    parser.add_argument("--unlabelled", action="store_true", help="leave classes out")
    convert_data(**parser.parse_args(list(arguments)).as_dict())


def convert_data(
    source: str,
    out: str | None = None,
    size: PositiveInt = 64,
    channels: Literal[1, 3] = 3,
    resize: Literal["area", "lanczos"] = "area",
    unlabelled: bool = False,
    val_size: NonNegativeInt | None = None,
    seed: int = 0,
    exif: Literal["apply", "ignore"] = "apply",
) -> None:
    """One memory-mapped array from EDM's zip or folder, downsampled ImageNet's npz files, or folders of images.

    Args:
        source: the data set; or a folder that was converted, to be checked.
        out: the new folder, for ersde_lit.data.ImageArray; the same command goes on after an interruption.
        size: pixels along the side of an image.
        channels: 3 for RGB, 1 for grey.
        resize: of images in class folders; area averages pixels, lanczos does as EDM's data tool.
        unlabelled: leave classes out; any folder or zip of images will do then.
        val_size: images to hold out for validation; a twentieth, but no more than 5000, if not given.
        seed: which ones.
        exif: apply turns images as their EXIF orientation says; ignore does not, as EDM's data tool and torchvision.
    """
    from ersde_lit.data.array import INFO, check_array
    from ersde_lit.data.classes import about_names
    from ersde_lit.data.convert import check_place, convert, draw_held_out, is_finished
    from ersde_lit.data.opening import open_source
    from ersde_lit.progress import progress

    if out is None:
        if not (Path(source).expanduser() / INFO).is_file():
            raise UserError(f"--out is missing ({source} has not been converted, so there is nothing to check)")
        info = check_array(source)
        print(f"{source} is whole: {info.images} images {info.image_shape}, {info.num_classes} classes")
        return
    check_place(out, source)
    opened = open_source(source, size, channels, resize, unlabelled, exif)
    held_out = draw_held_out(len(opened.labels), val_size, seed)
    if is_finished(opened, out, held_out):
        print(f"{out} is finished: nothing to do")
        return
    done = [0]
    asked = {"size": size, "channels": channels, "resize": resize, "unlabelled": unlabelled, "val_size": val_size}
    asked |= {"seed": seed, "exif": exif}
    command = " ".join([f"data {Path(source).expanduser().resolve()}", *(f"--{k}={v}" for k, v in asked.items())])
    with progress(lambda: sum(done), len(opened.labels)):
        info = convert(opened, out, held_out, done.append, command, print)
    for note in info.notes:
        print(f"note: {note}")
    if info.class_names:
        print(about_names(info.class_names))
    print(f"{info.images} images of {info.num_classes} classes in {out}, the last {info.val_images} of them held out")
