"""Fine-tuning: a new training starts from the averaged weights of an earlier one, and takes nothing else of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ersde_lit.errors import UserError
from ersde_lit.training.averaged import AveragedModule
from ersde_lit.training.spec import in_words
from ersde_lit.training.weights import plain_name

SKIPPABLE = ("num_classes", "label_dim", "uncertainty")  # settings that differ only in some of the weights


@torch.no_grad()
def initialise(module: AveragedModule, checkpoint: dict[str, Any], skip: Sequence[str] = ()) -> None:
    """Copies a checkpoint's averaged weights into a module, as its raw and its averaged ones.

    Args:
        module: the module to be trained; its optimiser, images seen and classes stay those of a new training.
        checkpoint: the content of a checkpoint file (`training.checkpoint.read`).
        skip: parts of names; weights whose names contain one keep their initial values. With it the number of classes
            may differ, and whether there is a learned uncertainty.

    Raises:
        UserError: settings, or weights that are not skipped, differ; names them with both values.
    """
    weights = {plain_name(name): weight for name, weight in checkpoint["state_dict"].items()}
    averaged = f"ema_{module.TRAINED}."
    if not any(name.startswith(averaged) for name in weights):
        averaged = f"{module.TRAINED}."  # a classifier of before there were averages
    own = module.averaged.state_dict()
    given = {name.removeprefix(averaged): weight for name, weight in weights.items() if name.startswith(averaged)}
    for word in skip:
        if not any(word in name for name in {**own, **given}):
            raise UserError(f"--init_skip {word}: there is no such weight, only those of {', '.join(_layers(own))}")
    skipped = {name for name in {**own, **given} if any(word in name for word in skip)}
    unfit = [n for n in {**own, **given} if n not in skipped and _shape(own, n) != _shape(given, n)]
    differing = {k: pair for k, pair in module.differences(checkpoint).items() if not k.endswith("dropout")}
    partly = {key: differing.pop(key) for key in [*differing] if key.endswith(SKIPPABLE)}
    if not (differing or partly):
        differing = {f"the shape of {name}": (_shape(given, name), _shape(own, name)) for name in unfit}
    if differing:
        raise UserError(f"the weights are of another model: {in_words({**differing, **partly})}")
    if unfit:
        advice = f"--init_skip {','.join(_layers(unfit))} leaves those weights as they are initialised"
        raise UserError(f"the weights are of another model: {in_words(partly)}; {advice}")
    for copy in (module.trained, module.averaged):
        copy.load_state_dict({name: own[name] if name in skipped else given[name] for name in own})


def _shape(weights: Mapping[str, torch.Tensor], name: str) -> list[int] | None:
    return list(weights[name].shape) if name in weights else None


def _layers(names: Iterable[str]) -> list[str]:
    """Names of layers without the denoiser's part and the parameter's, as in embed_label."""
    return sorted({name.removeprefix("network.").rpartition(".")[0] for name in names})
