"""Models in folders and on the Hugging Face hub, as `save_pretrained` and `from_pretrained` are used elsewhere.

A folder holds model.safetensors, as `export` writes it: weights and description of the model. No code is run.
"""

from pathlib import Path

from ersde_lit.errors import UserError, needs_extra
from ersde_lit.interop.weights.model import ImportedModel
from ersde_lit.interop.weights.safetensors_file import read_safetensors, write_safetensors
from ersde_lit.interop.weights.sources import PRETRAINED
from ersde_lit.training import DiffusionModule
from ersde_lit.training.averaged import SPEC_KEY
from ersde_lit.training.checkpoint import rebuild


def save_pretrained(model: DiffusionModule, folder: str | Path) -> Path:
    """Writes a model's weights, averaged and raw, to `folder`/model.safetensors; makes the folder if need be.

    Raises:
        UserError: the file exists.
    """
    path = Path(folder) / PRETRAINED
    if path.exists():
        raise UserError(f"{path} exists; choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(content)
    write_safetensors(content, path, "the model")
    return path


def from_pretrained(name: str | Path, revision: str | None = None) -> DiffusionModule:
    """Loads a model, in eval mode on the CPU, from a folder or from a repository of the hub, as in "user/model".

    Args:
        name: the folder, or the file; or a repository, where there is neither.
        revision: branch, tag or commit of the repository.

    Raises:
        UserError: there is no such file, it is damaged, or of something else than a denoiser.
    """
    path = Path(name) / PRETRAINED if Path(name).is_dir() else Path(name)
    if not Path(name).exists():
        path = _download(str(name), revision)
    if not path.is_file():
        raise UserError(f"{name} holds no {PRETRAINED}: `save_pretrained` writes one")
    found = read_safetensors(path)
    if not isinstance(found, ImportedModel):
        raise UserError(f"{name} holds a classifier: `import` it, and load that by load_classifier")
    checkpoint = found.checkpoint(found.module())
    return rebuild(DiffusionModule, checkpoint[SPEC_KEY], checkpoint, path, trust=False)


def _download(name: str, revision: str | None) -> Path:
    with needs_extra("hub", f"{name} is no folder, and a repository of the hub"):
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    try:
        return Path(huggingface_hub.hf_hub_download(name, PRETRAINED, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = " ".join(str(error).split())[:160]
        raise UserError(f"{name} is neither a folder nor a repository of the hub that can be read: {said}") from error
