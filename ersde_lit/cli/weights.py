"""Commands `ema`, `export` and `import`: each a function, whose signature is its parser."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from ersde_lit.cli.guided_model import of_other_network
from ersde_lit.cli.parser import Parser
from ersde_lit.errors import UserError
from ersde_lit.files import check_new, check_present, disk_errors, write_text
from ersde_lit.interop.weights.guided_flags import GuidedFlags


def run(command: str, arguments: Sequence[str]) -> None:
    function: Any = {"ema": average, "export": export_weights, "import": import_weights}[command]
    parser = Parser(command, str(function.__doc__).partition("\n")[0])
    parser.add_options(function)
    function(**parser.parse_args([*arguments]).as_dict())


def average(
    run: str,
    *,
    out: str,
    sigma_rel: PositiveFloat | None = None,
    gamma: NonNegativeFloat | None = None,
    images: PositiveInt | None = None,
) -> None:
    """A run's last checkpoint with averaged weights of another length, made from snapshots (EDM2's post-hoc EMA).

    Args:
        run: folder of a run trained with the callback PowerEMA, as runs/digits.
        out: checkpoint to write.
        sigma_rel: length of the average: its width as a fraction of the training, above 0 and at most 0.2887.
        gamma: the length by the exponent of its power function instead, at least 0.
        images: average as of the snapshot at this many images seen, not as of the last checkpoint.
    """
    check_new(out)
    if (gamma is None) == (sigma_rel is None):
        raise UserError("the length of the average is --sigma_rel or --gamma: pass one of them")
    _check_source(run)

    from ersde_lit.training import AtomicCheckpointIO, reconstruct
    from ersde_lit.training.power_ema import sigma_rel_of

    checkpoint = reconstruct(run, sigma_rel or sigma_rel_of(gamma or 0.0), images)
    with disk_errors(out):
        AtomicCheckpointIO().save_checkpoint(checkpoint, out)
    made = checkpoint["power_ema"]
    print(
        f"{out}: average of sigma_rel {made['sigma_rel']:.4g} (gamma {made['gamma']:.4g}) at {made['images']} images, "
        f"from {made['snapshots']} snapshots, to about {made['error']:.1g}"
    )


def export_weights(checkpoint: str, *, out: str, averaged_only: bool = False, tables: str | None = None) -> None:
    """A checkpoint's weights and the description of its model, without its training, as safetensors.

    Args:
        checkpoint: of fit, ema or import.
        out: file to write, NAME.safetensors; with tables also NAME.ckpt, the whole checkpoint.
        averaged_only: leave the raw weights out.
        tables: file of learned tables that it shall carry, and sample with by default.
    """
    check_new(out)
    kind = Path(out).suffix.lower()
    if kind != ".safetensors" and (kind != ".ckpt" or tables is None):
        raise UserError(f"--out {out}: the file is a .safetensors, name it so")
    if kind == ".ckpt" and averaged_only:
        raise UserError(f"--out {out}: a .ckpt is whole; leave --averaged_only out, or write a .safetensors")
    _check_source(checkpoint)
    if tables is not None:
        check_present({"tables": tables})

    from ersde_lit.interop.weights.safetensors_file import export
    from ersde_lit.solvers import read_tables
    from ersde_lit.training import carry, load, weights_digest

    carried = None if tables is None else read_tables(tables)
    with disk_errors(out):
        if kind == ".ckpt" and carried is not None:
            carry(checkpoint, carried, out)
            print(f"{out}: {checkpoint} with tables of {carried.nfes} calls, by which it samples where none is named")
        else:
            parts = export(checkpoint, out, averaged_only, carried)
            print(f"{out}: {' and '.join(parts)} weights of {checkpoint}; `import` makes a checkpoint of it again")
    if carried is not None and "network" in carried.facts:
        with suppress(UserError):  # a network of classes that are not ours: `sample` says it
            own = weights_digest(load(checkpoint).ema_denoiser.network)
            for line in of_other_network(carried.facts, own, str(tables)):
                print(line)


def import_weights(source: str, *, out: str, config_out: str | None = None, **flags: Any) -> None:
    """Weights of other toolkits to a checkpoint for sample, evaluate and fit; no code in them is run.

    Args:
        source: .pkl of EDM or EDM2, .pt of guided-diffusion, folder of diffusers, or .safetensors of `export`.
        out: checkpoint to write.
        config_out: YAML file to write, with the model as `fit --config` takes it, to train it further.
        flags: what guided-diffusion's weights do not contain, see `GuidedFlags`.
    """
    known = GuidedFlags(**flags)
    _check_source(source)
    check_new(out)
    if config_out is not None:
        check_new(config_out, "config_out")

    from ersde_lit.interop.weights.model import ImportedModel, fit_config, write
    from ersde_lit.interop.weights.sources import read_source

    model = read_source(source, known)
    if config_out is not None and not isinstance(model, ImportedModel):
        raise UserError(f"--config_out: {source} is a classifier, and fit trains denoisers")
    with disk_errors(out):
        report = write(model, out)
    print(f"{report}\n{'checkpoint':<17}{out}")
    if config_out is not None:
        with disk_errors(config_out, "config_out"):
            write_text(config_out, fit_config(model))
        print(f"{'configuration':<17}{config_out}: fit --config {config_out} --ckpt_path {out} --data ...")


def _check_source(path: str) -> None:
    """Raises UserError, before torch is imported, where there is nothing at the path of a source."""
    if not Path(path).exists():
        raise UserError(f"there is nothing at {path}")
