"""Command `restore`: restores a folder of degraded images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import NonNegativeInt, PositiveInt

from ersde_lit.cli.guided_model import describe, digests_of
from ersde_lit.cli.options.machine import MachineOptions
from ersde_lit.cli.options.model import ModelOptions
from ersde_lit.cli.options.sampler import OF_GRID, OF_SOLVER, SamplerOptions, as_options, is_table
from ersde_lit.cli.parser import Parser
from ersde_lit.errors import UserError
from ersde_lit.files import check_apart, check_out, check_present, given
from ersde_lit.names import SAMPLERS, SOLVERS

if TYPE_CHECKING:
    from ersde_lit.sampling.restored import Degraded
    from ersde_lit.solvers import Sampler

TILES_AT_A_TIME = 16


@dataclass(frozen=True)
class RestoreOptions:
    """Which images, and how.

    Args:
        ckpt_path: checkpoint of a model that was trained on the degradation (--model.noise).
        images: folder of degraded images, of any size, of 8 or 16 bits a channel.
        out: folder to write, with PNGs of the same names and bits.
        clean: folder of the clean images, of the same names; prints PSNR and SSIM of degraded and restored images.
        nfe: network calls an image, or a tile of it.
        solver: er_sde, ddim, unipc2, ... as for `sample`, with its options, as in er_sde:order=3:noise_scale=ode; if
            not given, second order without noise.
        grid: noise levels as for `sample`, with their options, as in edm:rho=3; if not given, of equal ratios, down to
            sigma 0.3.
        seed: for solvers with noise: the first image has the noise of this seed, each further one that of the next.
        tile: side of the tiles that larger images are restored in; the size that the network was made for if not given.
        overlap: of neighbouring tiles, in pixels, at least; a quarter of a tile if not given.
        overwrite: replace what lies at `out`, or under way to it, if it is of another command.
    """

    ckpt_path: str
    images: str
    out: str
    clean: str | None = None
    nfe: PositiveInt = 5
    solver: str | None = None
    grid: str | None = None
    seed: NonNegativeInt = 0
    tile: PositiveInt | None = None
    overlap: NonNegativeInt | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        solver = self.sampling.solver
        if solver in SAMPLERS or is_table(solver):
            raise UserError(f"--solver {solver} restores no images: choose from {', '.join(SOLVERS)}")

    @cached_property
    def sampling(self) -> SamplerOptions:
        """The options of the sampler that are given."""
        return SamplerOptions(nfe=self.nfe, solver=self.solver, grid=self.grid)

    def sampler(self, denoiser: Any) -> tuple["Sampler", dict[str, Any]]:
        """The sampler and its options; solver or grid are those of `RESTORER` where they are not given."""
        from ersde_lit.sampling.restoration import RESTORER

        usual, given = as_options(RESTORER), self.sampling
        left = {"solver", *OF_SOLVER} if given.solver is None else set()
        left |= {"grid", *OF_GRID} if given.grid is None else set()
        found = {name: value for name, value in usual.items() if name in left and not getattr(given, name)}
        return replace(given, **found).sampler(denoiser)


def run(command: str, arguments: Sequence[str]) -> None:
    what = "Degraded images, restored by a checkpoint that was trained on their degradation."
    parser = Parser(command, what, RestoreOptions, ModelOptions, MachineOptions, skip=["labels", "decoder"])
    parser.set_defaults(batch_size=TILES_AT_A_TIME)
    _, groups = parser.read(arguments)
    restore(*groups)


def restore(what: RestoreOptions, model: ModelOptions, machine: MachineOptions) -> None:
    """Restores images and writes them to `out`."""
    paths = _folders(what)

    from ersde_lit.data.files import Folder
    from ersde_lit.data.image_files import image_names, pair_shapes, read_pixels
    from ersde_lit.sampling.restoration import restoration_table
    from ersde_lit.sampling.restored import Degraded, Restoration, RestoredFolder
    from ersde_lit.sampling.run import complete
    from ersde_lit.sampling.tiles import Tiles
    from ersde_lit.sampling.work import Work
    from ersde_lit.training import load

    # Whatever can be wrong is found before other ranks are started and anything is written.
    names = [*pair_shapes(*paths.values())] if what.clean else image_names(paths["images"])
    for name in names if what.clean else ():
        read_pixels(paths["clean"] / name)  # raises now where it is damaged
    module = load(what.ckpt_path, model.trust)
    denoiser = module.ema_denoiser
    sampler, named = what.sampler(denoiser)
    table = restoration_table(denoiser, sampler, what.nfe)
    tiles = Tiles.of(denoiser.network, what.tile, what.overlap)
    degraded = Degraded.read(paths["images"], names, denoiser.image_shape[0])
    most = max(tiles.count(*size) for size in degraded.sizes)
    if most > 1 and bool(table.b.any()):
        raise UserError("a sampler with noise restores whole images only: take a larger --tile, or one without noise")
    block = max(1, machine.batch_size // most)  # of images, all in memory
    numbers, files = range(len(names)), {"ckpt_path": what.ckpt_path}
    others: dict[str, Any] = {"labels": "none"} if denoiser.num_classes else {}
    others |= {"tile": f"{tiles.height}x{tiles.width}", "overlap": tiles.overlap, "seed": what.seed}
    digests = digests_of(files) | {"images": degraded.digest}
    files["images"] = what.images
    meta = describe(numbers, sampler, named, others | machine.named(), files, digests)
    work = Work(what.out, RestoredFolder(of=degraded), numbers, block, meta, what.overwrite, machine.batch_size)
    if work.finished():
        work.clean()
        print(f"{what.out} is finished: nothing to do")
    else:
        ranks = machine.start(denoiser)
        if ranks.is_first:
            for note in Folder(paths["images"]).notes:
                print(f"note: {note}")
        job = Restoration(denoiser, sampler, what.nfe, degraded, tiles, what.seed, **machine.arithmetic)
        report = complete(work, job, ranks)
        if not ranks.is_first:
            return
        print(f"{len(names):,} images in {what.out}, NFE {what.nfe}: {report}")
    if what.clean:
        _compare(degraded, paths["clean"], Path(what.out))


def _folders(what: RestoreOptions) -> dict[str, Path]:
    """The folders of images by option; UserError where one is missing, or nothing can be written to `out`."""
    check_out(what.out)
    if Path(what.out).suffix:
        raise UserError(f"--out {what.out}: restored images are a folder, whose name has no ending")
    images = given(images=what.images, clean=what.clean)
    check_present({"ckpt_path": what.ckpt_path, **images})
    check_apart({"out": what.out}, {"ckpt_path": what.ckpt_path})
    out, folders = Path(what.out).resolve(), {name: Path(path).expanduser() for name, path in images.items()}
    for name, folder in folders.items():
        if out.is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(out):
            raise UserError(f"--out {what.out} and --{name} {folder} lie in one another: choose another name")
    return folders


def _compare(degraded: "Degraded", clean: Path, restored: Path) -> None:
    """Prints mean PSNR and SSIM of degraded and restored images, as their files hold them."""
    import torch

    from ersde_lit.data.image_files import read_image
    from ersde_lit.metrics.fidelity import fidelity
    from ersde_lit.sampling.restored import restored_name

    units = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.4f}"}
    files = {"degraded": (degraded.folder, degraded.names), "restored": (restored, map(restored_name, degraded.names))}
    for kind, (folder, names) in files.items():
        pairs = ((folder / name, clean / its_clean) for name, its_clean in zip(names, degraded.names, strict=True))
        values = [fidelity(*(read_image(path)[0][None] for path in pair)) for pair in pairs]
        told = []
        for key, unit in units.items():
            if known := [one[key] for one in values if key in one]:
                some = f" of {len(known)} images" if len(known) < len(values) else ""
                told.append(unit.format(float(torch.cat(known).mean())) + some)
        print(f"{kind}  {', '.join(told)}")
