"""Reader for imported weights of any kind, which is recognised by the file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ersde_lit.errors import UserError
from ersde_lit.interop.weights.diffusers_folder import read_diffusers
from ersde_lit.interop.weights.edm import read_edm
from ersde_lit.interop.weights.guided_diffusion import import_guided
from ersde_lit.interop.weights.guided_flags import GuidedFlags
from ersde_lit.interop.weights.safetensors_file import read_safetensors
from ersde_lit.interop.weights.torch_files import read_torch, state_dict
from ersde_lit.training.averaged import SPEC_KEY
from ersde_lit.training.checkpoint import read
from ersde_lit.untrusted.torch_before_zip import is_before_zip

PRETRAINED = "model.safetensors"  # in a folder of `save_pretrained`
READERS = {"diffusers": read_diffusers, "edm": read_edm, "safetensors": read_safetensors}


def read_source(source: str | Path, flags: GuidedFlags = GuidedFlags()) -> Any:  # noqa: B008 (frozen)
    """The `ImportedModel` or `ImportedClassifier` of a file or folder, none of whose code is run.

    Args:
        source: .pkl of EDM or EDM2, .pt of guided-diffusion, a folder of diffusers, .safetensors of `export` or
            the folder of `save_pretrained`.
        flags: guided-diffusion's flags, which its weights do not tell.

    Raises:
        UserError: a source that is of another kind, damaged or hostile.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(f"there is nothing at {source}")
    if not (path.is_dir() or path.is_file()):
        raise UserError(f"{source} is neither a file nor a folder")
    if (path / PRETRAINED).is_file() and not (path / "model_index.json").exists():
        path /= PRETRAINED
    kind = "diffusers" if path.is_dir() else _kind(path)
    if flags.given and kind != "guided":
        raise UserError(f"--{next(iter(flags.given))} is a flag of guided-diffusion, and {source} is not its .pt")
    if kind in READERS:
        return READERS[kind](path)
    content = read_torch(path)
    if SPEC_KEY in content:
        raise UserError(f"{source} is a checkpoint of ersde_lit already: it needs no import")
    weights, notes = state_dict(content, path)
    model = import_guided(weights, flags)
    return replace(model, notes=[*notes, *model.notes])


def read_weights(path: str | Path) -> dict[str, Any]:
    """Content of a checkpoint (.ckpt), or of what `read_source` reads, in a checkpoint's form."""
    if Path(path).suffix == ".ckpt":
        return read(path)
    model = read_source(path)
    content: dict[str, Any] = model.checkpoint(model.module())
    return content


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"PK\x03\x04") or is_before_zip(path):
        return "guided"
    # Checked before pickles: the length of a safetensors header, its first 8 bytes, can begin like a pickle.
    fits = int.from_bytes(head[:8], "little") < path.stat().st_size
    if (head[8:] == b"{" and fits) or path.suffix == ".safetensors":
        return "safetensors"
    if head.startswith(b"\x80"):
        return "edm"
    raise UserError(f"{path} is none of EDM's pickles, torch.save's files and safetensors: it cannot be imported")
