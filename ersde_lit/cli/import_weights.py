"""import: other people's weights to a checkpoint. Its arguments are read before torch is imported."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser

from ersde_lit.cli import fail
from ersde_lit.interop.guided_flags import GuidedFlags
from ersde_lit.sampling.output import check_out, disk_errors


class Parser(ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SystemExit(fail(f"import: {message}"))


def run(command: str, arguments: Sequence[str]) -> None:
    parser = Parser(
        prog=f"python -m ersde_lit {command}", description=(import_weights.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "source",
        type=str,
        help="EDM's .pkl, guided-diffusion's .pt, a folder of diffusers' DDPMPipeline, or .safetensors of `export`",
    )
    parser.add_argument("--out", type=str, required=True, help="checkpoint to write")
    parser.add_class_arguments(GuidedFlags)
    options = parser.parse_args(list(arguments)).as_dict()
    flags = GuidedFlags(**{field.name: options[field.name] for field in fields(GuidedFlags)})
    import_weights(options["source"], options["out"], flags)


def import_weights(source: str, out: str, flags: GuidedFlags = GuidedFlags()) -> None:  # noqa: B008 (frozen)
    """Other people's weights to a checkpoint for sample, evaluate and fit; no code that they carry is run.

    Args:
        source: EDM's .pkl, guided-diffusion's .pt, a folder of diffusers' DDPMPipeline, or .safetensors of `export`.
        out: checkpoint to write.
        flags: what guided-diffusion's weights do not say of themselves.
    """
    check_new(out)

    from ersde_lit.interop.model import write
    from ersde_lit.interop.sources import read_source

    model = read_source(source, flags)
    with disk_errors(out):
        report = write(model, out)
    print(f"{report}\n{'checkpoint':<17}{out}")


def check_new(out: str) -> None:
    """Raises ValueError where a file cannot be written, or is there."""
    if Path(out).exists():
        raise ValueError(f"--out {out} exists; choose another name")
    check_out(out)
