"""Command `reference`: measures the features of real images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt

from ersde_lit.cli.options.reference import ReferenceOptions
from ersde_lit.cli.parser import Parser
from ersde_lit.errors import UserError
from ersde_lit.files import check_new, disk_errors


def run(command: str, arguments: Sequence[str]) -> None:
    parser = Parser(command, str(measure_reference.__doc__).partition("\n")[0])
    parser.add_options(measure_reference)
    measure_reference(**parser.parse_args([*arguments]).as_dict())


def measure_reference(
    source: str | None = None,
    *,
    out: str,
    data: dict[str, Any] | str | None = None,
    features: dict[str, Any] | str = "inception",
    weights: str | None = None,
    keep_features: NonNegativeInt = 0,
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto",
    exif: Literal["apply", "ignore"] = "apply",
) -> None:
    """Mean and covariance of real images' features, as EDM's `mu` and `sigma`, for FID.

    Args:
        source: images, unless they are those of `data`: a folder or zip of them, an npz with arr_0, or a folder that
            the command `data` made (its training images).
        out: the .npz to write.
        data: a DataModule, as in ersde_lit.data.FashionMNIST:root=data, or a YAML file with `data` in it.
        features: inception; dinov2; efficientnet; classifier, trained on the labels of --data or of the folder that
            `data` made; or a class.
        weights: the file of the features' weights; if not given, Inception's are downloaded, EfficientNet's installed.
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
    check_new(out)

    from ersde_lit.data.array import is_converted
    from ersde_lit.metrics import features_for, image_files, reference_of, too_few, write_reference
    from ersde_lit.progress import progress
    from ersde_lit.ranks import Ranks

    if source is not None and data is None and features == "classifier" and is_converted(Path(source).expanduser()):
        data = {"class_path": "ersde_lit.data.ImageArray", "init_args": {"root": source}}
    options = ReferenceOptions(data, source, features, weights)
    module = options.open_data()
    images: Any = module if source is None else image_files(source, exif=exif)
    device = Ranks.start(accelerator).device
    choice: Any = options.open_features()
    net, done = features_for(choice, module, weights, device=device), [0]
    count = len(images.split("train").images if source is None else images)
    with progress(lambda: sum(done), count):
        found = reference_of(images, net, device, keep_features=keep_features, advance=done.append)
    with disk_errors(out):
        write_reference(found, out)
    print(f"{out}: mean and covariance of {found.description}, {net.description}")
    for note in filter(None, (too_few(found.num_images or 0, net.num_features), found.copies_in_words)):
        print(f"warning: {note}")
