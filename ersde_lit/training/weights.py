"""Names of weights without those of wrappers, and comparison of a state dict with a module."""

from collections.abc import Mapping

from torch import Tensor, nn

from ersde_lit.errors import UserError

_WRAPPERS = ("module", "_orig_mod")  # of DistributedDataParallel and AveragedModel, and of torch.compile


def plain_name(name: str) -> str:
    """A weight's name without those of the wrappers around its module, wherever they stand."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def fitted(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The weights by the names that they have in a module, which may be wrapped otherwise, or not.

    Raises:
        ValueError: as of `compare`, or two weights of one name.
    """
    own = {plain_name(name): name for name in module.state_dict()}
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        new = own.get(plain_name(name), name)
        if new in found:
            raise UserError(f"it has the weight {new[:80]!r} twice, as {name[:80]!r} too")
        found[new] = tensor
    compare(found, module)
    return found


def compare(weights: Mapping[str, Tensor], module: nn.Module) -> None:
    """Raises ValueError, with a name and its shape, where the weights are not exactly those of the module."""
    expected = module.state_dict()
    if lacking := expected.keys() - weights.keys():
        first = min(lacking)
        raise UserError(
            f"it lacks {len(lacking)} weights, among them {first[:80]!r}, which is {list(expected[first].shape)}"
        )
    if unknown := weights.keys() - expected.keys():
        first = min(unknown)
        raise UserError(
            f"it has {len(unknown)} weights that its network has not, among them {first[:80]!r}, "
            f"which is {list(weights[first].shape)}"
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            theirs, own = list(tensor.shape), list(expected[name].shape)
            raise UserError(f"its weight {name[:80]!r} is {theirs}, in its network {own}")
        if expected[name].is_floating_point() and not tensor.is_floating_point():
            types = f"{tensor.dtype}, in its network {expected[name].dtype}"
            raise UserError(f"its weight {name[:80]!r} is of the type {types}")
