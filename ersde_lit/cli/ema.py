"""ema: averaged weights of any length from a run's snapshots. Its arguments are read before torch is imported."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from ersde_lit.cli.parser import Parser
from ersde_lit.errors import UserError
from ersde_lit.files import disk_errors


def run(command: str, arguments: Sequence[str]) -> None:
    parser = Parser(prog=f"python -m ersde_lit {command}", description=(ema.__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=str, help="folder of a run trained with the callback PowerEMA, as runs/digits")
    parser.add_function_arguments(ema, skip={"run"})
    ema(**parser.parse_args(list(arguments)).as_dict())


def ema(
    run: str,
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
    target = Path(out)
    if target.exists():
        raise UserError(f"--out {out} exists; choose another name")
    if not target.resolve().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {target.resolve().parent}; make it first")

    from ersde_lit.training import AtomicCheckpointIO, reconstruct
    from ersde_lit.training.power_ema import sigma_rel_of

    if gamma is not None and sigma_rel is None:
        sigma_rel = sigma_rel_of(gamma)
    elif sigma_rel is None or gamma is not None:
        raise UserError("say which average: pass --sigma_rel or --gamma, one of them")
    checkpoint = reconstruct(run, sigma_rel, images)
    with disk_errors(out):
        AtomicCheckpointIO().save_checkpoint(checkpoint, out)
    made = checkpoint["power_ema"]
    print(
        f"{out}: average of sigma_rel {made['sigma_rel']:.4g} (gamma {made['gamma']:.4g}) at {made['images']} images, "
        f"from {made['snapshots']} snapshots, to about {made['error']:.1g}"
    )
