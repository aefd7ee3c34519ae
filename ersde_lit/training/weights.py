"""Names of weights without wrappers, their digest, and comparison of a state dict with a module."""

from collections.abc import Mapping

from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.metrics.cache import digest

_WRAPPERS = ("module", "_orig_mod")  # of DistributedDataParallel and AveragedModel, and of torch.compile


def plain_name(name: str) -> str:
    """Removes the names of wrappers from a weight's name."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def weights_digest(network: nn.Module) -> str:
    """16 hex digits of a network's weights, in whatever file, on whatever device and however wrapped they are."""
    weights = sorted((plain_name(name), tensor) for name, tensor in network.state_dict().items())
    return digest(str([(name, str(w.dtype), [*w.shape]) for name, w in weights]), (w for _, w in weights))


def fitted(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Renames weights as in a module whose wrappers differ; raises UserError as `compare`, or for duplicates."""
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
    """Raises UserError, with a name and its shape, where the weights are not exactly those of the module."""
    expected = module.state_dict()
    for what, names, of in (
        ("lacks {} weights", expected.keys() - weights.keys(), expected),
        ("has {} weights that its network has not", weights.keys() - expected.keys(), weights),
    ):
        if names:
            first = min(names)
            shape = list(of[first].shape)
            raise UserError(f"it {what.format(len(names))}, among them {first[:80]!r}, which is {shape}")
    for name, tensor in weights.items():
        own = expected[name]
        if tensor.shape != own.shape:
            raise UserError(f"its weight {name[:80]!r} is {list(tensor.shape)}, in its network {list(own.shape)}")
        if own.is_floating_point() and not tensor.is_floating_point():
            raise UserError(f"its weight {name[:80]!r} is of the type {tensor.dtype}, in its network {own.dtype}")
