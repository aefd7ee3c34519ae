"""export: a checkpoint to the form to publish. Its arguments are read before torch is imported."""

from collections.abc import Sequence
from pathlib import Path

from ersde_lit.cli.import_weights import check_new
from ersde_lit.cli.parser import Parser
from ersde_lit.errors import UserError
from ersde_lit.files import disk_errors


def run(command: str, arguments: Sequence[str]) -> None:
    parser = Parser(
        prog=f"python -m ersde_lit {command}", description=(export_weights.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("checkpoint", type=str, help="of fit, ema or import")
    parser.add_argument("--out", type=str, required=True, help="file to write, by custom NAME.safetensors")
    parser.add_argument("--averaged_only", action="store_true", help="leave the raw weights out")
    export_weights(**parser.parse_args(list(arguments)).as_dict())


def export_weights(checkpoint: str, out: str, averaged_only: bool = False) -> None:
    """A checkpoint's weights and the description of its model, without its training, as safetensors.

    Args:
        checkpoint: of fit, ema or import.
        out: file to write.
        averaged_only: leave the raw weights out.
    """
    check_new(out)
    if Path(out).suffix.lower() != ".safetensors":
        raise UserError(f"--out {out}: give it a name that ends in .safetensors, which is what it will be")

    from ersde_lit.interop.weights.safetensors_file import export

    with disk_errors(out):
        parts = export(checkpoint, out, averaged_only)
    print(f"{out}: {' and '.join(parts)} weights of {checkpoint}; `import` makes a checkpoint of it again")
