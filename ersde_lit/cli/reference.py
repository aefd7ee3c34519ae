"""reference: statistics of real images in EDM's format, for others or for later. Reads its arguments before torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeInt

from ersde_lit.cli.choose_reference import ReferenceOptions
from ersde_lit.cli.parser import Parser
from ersde_lit.errors import UserError
from ersde_lit.files import check_out, disk_errors

if TYPE_CHECKING:
    from ersde_lit.data import ImageDataModule
    from ersde_lit.metrics import ImageFiles

INFO = "info.json"  # of a folder that `data` made


def run(command: str, arguments: Sequence[str]) -> None:
    parser = Parser(prog=f"python -m ersde_lit {command}", description=(reference.__doc__ or "").partition("\n")[0])
    parser.add_argument("source", nargs="?", type=str, help="the images, unless they are those of --data")
    parser.add_function_arguments(reference, skip={"source"})
    reference(**parser.parse_args(list(arguments)).as_dict())


def reference(
    out: str,
    source: str | None = None,
    data: dict[str, Any] | str | None = None,
    features: dict[str, Any] | str = "inception",
    weights: str | None = None,
    keep_features: NonNegativeInt = 0,
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto",
    exif: Literal["apply", "ignore"] = "apply",
) -> None:
    """Mean and covariance of real images' features, as EDM's `mu` and `sigma`, for FID.

    Args:
        out: the .npz to write.
        source: images: a folder or zip of them, an npz with arr_0, or a folder that `data` made (its training images).
        data: a DataModule, as in ersde_lit.data.FashionMNIST:root=data, or a YAML file with `data` in it.
        features: inception; classifier, trained on the labels of --data or of the folder that `data` made; or a class.
        weights: the file of Inception's weights; downloaded if not given.
        keep_features: of so many images features are stored too, for KID, precision and recall.
        accelerator: auto, cpu, gpu, cuda or mps.
        exif: of image files: apply turns them as their EXIF orientation says; ignore does not, as torchvision.
    """
    if source is None and data is None:
        raise UserError("there are no images: name them, or give --data")
    if source is not None and data is not None and features != "classifier":
        raise UserError(f"{source} and --data {data} are two sets of images: give one")
    if Path(out).suffix != ".npz":
        raise UserError(f"--out {out}: the file is an .npz, name it so")
    check_out(out)
    if Path(out).exists():
        raise UserError(f"--out {out} exists; choose another name")
    if data is None and features == "classifier" and (Path(source or "").expanduser() / INFO).is_file():
        data = {"class_path": "ersde_lit.data.ImageArray", "init_args": {"root": source}}
    options = ReferenceOptions(data, source, features, weights)

    from ersde_lit.metrics import features_for, image_files, reference_of, too_few, write_reference
    from ersde_lit.progress import progress
    from ersde_lit.ranks import fabric

    module = options.open_data()
    images: Any = module if source is None else image_files(source, exif=exif)
    ranks = fabric(accelerator)
    choice: Any = options.open_features()
    net, done = features_for(choice, module, weights, device=ranks.device), [0]
    with progress(lambda: sum(done), _count(images)):
        found = reference_of(images, net, ranks.device, keep_features=keep_features, advance=done.append)
    with disk_errors(out):
        write_reference(found, out)
    print(f"{out}: mean and covariance of {found.description}, {net.description}")
    for note in filter(None, (too_few(found.num_images or 0, net.num_features), found.copies_in_words)):
        print(f"warning: {note}")


def _count(images: "ImageDataModule | ImageFiles") -> int:
    from ersde_lit.metrics import ImageFiles

    return len(images) if isinstance(images, ImageFiles) else len(images.split("train").images)
