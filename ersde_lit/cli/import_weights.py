"""import: other people's weights to a checkpoint. Its arguments are read before torch is imported."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ersde_lit.cli.parser import Parser
from ersde_lit.errors import UserError
from ersde_lit.files import check_out, disk_errors
from ersde_lit.interop.weights.guided_flags import GuidedFlags


def run(command: str, arguments: Sequence[str]) -> None:
    parser = Parser(
        prog=f"python -m ersde_lit {command}", description=(import_weights.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "source",
        type=str,
        help="EDM's .pkl, guided-diffusion's .pt, a folder of a diffusers pipeline, or .safetensors of `export`",
    )
    parser.add_argument("--out", type=str, required=True, help="checkpoint to write")
    parser.add_argument("--config_out", type=str | None, help="also write the model as YAML for `fit --config`")
    parser.add_class_arguments(GuidedFlags)
    options = parser.parse_args(list(arguments)).as_dict()
    flags = GuidedFlags(**{field.name: options[field.name] for field in fields(GuidedFlags)})
    import_weights(options["source"], options["out"], options["config_out"], flags)


def import_weights(source: str, out: str, config_out: str | None, flags: GuidedFlags) -> None:
    """Other people's weights to a checkpoint for sample, evaluate and fit; no code that they carry is run.

    Args:
        source: EDM's .pkl, guided-diffusion's .pt, a folder of a diffusers pipeline, or .safetensors of `export`.
        out: checkpoint to write.
        config_out: YAML file to write, with the model as `fit --config` takes it, to train it further.
        flags: what guided-diffusion's weights do not say of themselves.
    """
    check_new(out)
    if config_out is not None:
        check_new(config_out, "config_out")

    from ersde_lit.interop.weights.model import ImportedModel, fit_config, write
    from ersde_lit.interop.weights.sources import read_source

    model = read_source(source, flags)
    if config_out is not None and not isinstance(model, ImportedModel):
        raise UserError(f"--config_out: {source} is a classifier, and fit trains denoisers")
    with disk_errors(out):
        report = write(model, out)
    print(f"{report}\n{'checkpoint':<17}{out}")
    if config_out is not None:
        with disk_errors(config_out):
            Path(config_out).write_text(fit_config(model))
        print(f"{'configuration':<17}{config_out}: fit --config {config_out} --ckpt_path {out} --data ...")


def check_new(out: str, option: str = "out") -> None:
    """Raises ValueError where a file cannot be written, or is there."""
    if Path(out).exists():
        raise UserError(f"--{option} {out} exists; choose another name")
    check_out(out)
