"""Command `sample`: generates images from a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from jsonargparse.typing import PositiveInt

from ersde_lit.cli.guided_model import GuidedModel
from ersde_lit.cli.options.guidance import FILES, GuidanceOptions
from ersde_lit.cli.options.machine import MachineOptions
from ersde_lit.cli.options.model import ModelOptions
from ersde_lit.cli.options.sampler import OF_GRID, REPLACES, SamplerOptions, is_table
from ersde_lit.cli.parser import Parser
from ersde_lit.errors import UserError
from ersde_lit.files import check_apart, check_out, check_present, given
from ersde_lit.names import CARRIED, TABLES
from ersde_lit.sampling.description import Meta
from ersde_lit.sampling.formats import format_of, read_meta
from ersde_lit.sampling.seeds import parse_seeds

ON_SHEET = 8  # images of --trajectory
LAYOUT = ("subdirs", "columns")  # options that change files, not images


@dataclass(frozen=True)
class ImageOptions:
    """Which images.

    Args:
        ckpt_path: checkpoint that `fit` wrote; it alone says network, weights, preconditioning and image size.
        seeds: which images, as in 0-499 or 3,7,10-12; image k depends on seed k alone.
        out: a folder for PNGs, or a file: .npz (arr_0, arr_1), .zip (as EDM's data sets), .png (a grid).
        subdirs: a thousand PNGs to a folder.
        columns: of a .png; near to a square if not given.
        overwrite: replace what lies at `out`, or under way to it, if it is of another command.
        preview: a .png that shows the images as they come.
        trajectory: a .png of the first 8 images: a row an image, a column a network call, the x0 predicted there.
    """

    ckpt_path: str
    seeds: str | int
    out: str
    subdirs: bool = False
    columns: PositiveInt | None = None
    overwrite: bool = False
    preview: str | None = None
    trajectory: str | None = None


GROUPS: Any = (ImageOptions, ModelOptions, SamplerOptions, GuidanceOptions, MachineOptions)
# What --like takes over of samples, and of the files they were made with.
AGAIN = {field.name for group in (SamplerOptions, GuidanceOptions) for field in fields(group)} - {*FILES}
AGAIN |= {"labels", "batch_size", "precision", "compile"}
AGAIN_FILES = {"ckpt_path", "decoder", "solver", *FILES}
FLAGS = [field.name for group in GROUPS for field in fields(group) if field.type is bool]


def run(command: str, arguments: Sequence[str]) -> None:
    parser = Parser(command, "Images from a checkpoint.", *GROUPS)
    parser.add_argument(
        "--like", type=str | None, help="samples whose options to take, but for those given and what these replace"
    )
    needed = [f"--{field.name}=" for field in fields(ImageOptions) if field.default is MISSING]
    said = parser.parse_args([*needed, *arguments], defaults=False).as_dict()
    options, (image, model, sampling, guidance, machine) = parser.read([*_options_of(said), *arguments])
    sample(image, model, sampling, guidance, machine, options["like"])


def _options_of(said: Mapping[str, Any]) -> list[str]:
    """Reads the options of the samples named by `--like`, without those that given options replace, as arguments.

    The file is untrusted: only options that determine images are taken.
    """
    if said.get("like") is None:
        return []
    meta = read_meta(said["like"])
    if "sampler" in meta["options"] and said.get("solver") is None and said.get("preset") is None:
        raise UserError(f"--like {said['like']}: a sampler of a configuration made it; name a --solver")
    kept = {name: value for name, value in meta["paths"].items() if name in AGAIN_FILES}
    kept |= {name: value for name, value in meta["options"].items() if name in AGAIN}
    replaced = {
        name
        for option, names in REPLACES.items()
        if option in said and said[option] != kept.get(option, False)
        for name in names
    }
    if is_table(said.get("solver")):
        replaced |= {"grid", *OF_GRID}
    flags = [f"--{name}" for name in kept if name in FLAGS and name not in replaced and kept[name] is True]
    return flags + [f"--{name}={kept[name]}" for name in kept if name not in replaced and name not in FLAGS]


def sample(
    image: ImageOptions,
    options: ModelOptions,
    sampling: SamplerOptions,
    guidance: GuidanceOptions,
    machine: MachineOptions,
    like: str | None = None,
) -> None:
    """Samples images and writes them to `out`."""
    seeds = parse_seeds(str(image.seeds))
    check_out(image.out)
    layout = {name: getattr(image, name) for name in LAYOUT if getattr(image, name)}
    views = given(preview=image.preview, trajectory=image.trajectory)
    format = format_of(image.out, **layout)
    tables = sampling.solver if str(sampling.solver).endswith(TABLES) else None
    inputs = given(ckpt_path=image.ckpt_path, **guidance.checkpoints, decoder=options.decoder, solver=tables)
    check_apart({"out": image.out, **views}, inputs)
    check_present(inputs)

    from ersde_lit.sampling.run import complete, trajectory
    from ersde_lit.sampling.views import Preview, check_view
    from ersde_lit.sampling.work import Work

    # Whatever can be wrong is found before other ranks are started and anything is written.
    model = GuidedModel.open(image.ckpt_path, options, guidance, machine)
    sampler, named = sampling.sampler(model.denoiser, model.carried)
    job = model.job(sampler, named["nfe"], seeds)
    format.check(len(seeds), model.image_shape)
    for option, path in views.items():
        check_view(option, path, model.image_shape)
    meta = model.describe(seeds, sampler, named, **layout)
    made_with: Meta = {"checkpoints": {}, "paths": {}, "options": {}} if like is None else read_meta(like)
    for name, path in meta["paths"].items():
        if name == "solver" and (path, named["nfe"]) != (made_with["paths"].get(name), made_with["options"].get("nfe")):
            continue  # another table is asked for
        digest = meta["checkpoints"][name]
        if made_with["checkpoints"].get(name, digest) != digest:
            raise UserError(f"{path} is not the file that {like} was made with: give that by --{name}")
    work = Work(image.out, format, seeds, machine.batch_size, meta, image.overwrite)
    if (finished := work.finished()) and image.trajectory is None:
        work.clean()
        print(f"{image.out} is finished: nothing to do")
        return

    warnings = model.warnings(sampler, "the table" if named["solver"] == CARRIED else named["solver"])
    ranks = machine.start(model.denoiser)
    first = ranks.is_first
    for warning in warnings if first else ():
        print(warning)
    with ranks.fail_together():
        if first and image.trajectory is not None:
            trajectory(job, seeds[:ON_SHEET], image.trajectory)
    if finished:
        if first:
            work.clean()
            print(f"{image.out} is finished; {image.trajectory} is drawn")
        return
    shown = 64 if model.decoder is None else 4  # decoding takes longer than a step
    preview = Preview(image.preview, shown, to_bytes=job.to_bytes) if image.preview else None
    report = complete(work, job, ranks, preview)
    if first:
        by = " by the checkpoint's own table" if named["solver"] == CARRIED else ""
        if model.carried is not None and sampling.solver is None and not by:
            by = f" (the checkpoint carries tables of {model.carried.nfes} calls)"
        print(f"{len(seeds):,} images in {image.out}, NFE {job.nfe}{by}: {report}")
