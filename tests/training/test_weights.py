import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ersde_lit.training.weights import compare, fitted, plain_name, weights_digest


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("module.network.0.weight", "network.0.weight"),
        ("network._orig_mod.0.weight", "network.0.weight"),
        ("_orig_mod.module.network.0._orig_mod.weight", "network.0.weight"),
        ("network.modules.0.weight", "network.modules.0.weight"),
        ("network.0.weight", "network.0.weight"),
    ],
)
def test_names_of_wrappers_are_taken_off(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_weights_fit_whichever_of_the_two_is_wrapped() -> None:
    plain, compiled = Net(), Net()
    compiled.network = torch.compile(compiled.network)
    averaged = AveragedModel(plain)
    for weights, module in (
        (compiled.state_dict(), plain),
        (plain.state_dict(), compiled),
        ({f"module.{name}": w for name, w in plain.state_dict().items()}, compiled),
        (averaged.module.state_dict(), plain),
    ):
        module.load_state_dict(fitted(weights, module))


def test_a_module_that_is_called_module_keeps_its_name() -> None:
    net = nn.Module()
    net.module = nn.Linear(3, 2)
    assert fitted(net.state_dict(), net).keys() == net.state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network.1.bias": None}, r"lacks 1 weights, among them 'network.1.bias', which is \[1\]"),
        ({"more": torch.ones(2, 3)}, r"has 1 weights that its network has not, among them 'more', which is \[2, 3\]"),
        ({"network.0.bias": torch.ones(7)}, r"'network.0.bias' is \[7\], in its network \[2\]"),
        ({"module.network.0.bias": torch.ones(2)}, "has the weight 'network.0.bias' twice"),
    ],
)
def test_the_weight_that_does_not_fit_is_named_with_its_shape(change: dict, message: str) -> None:
    weights = {name: w for name, w in {**Net().state_dict(), **change}.items() if w is not None}
    with pytest.raises(ValueError, match=message):
        fitted(weights, Net())
    if "module" not in next(iter(change)):
        with pytest.raises(ValueError, match=message):
            compare(weights, Net())


def test_the_digest_is_of_the_weights_and_of_nothing_else() -> None:
    net = Net()
    twin = Net()
    twin.load_state_dict(net.state_dict())
    digests = {weights_digest(module) for module in (net, twin.eval(), nn.DataParallel(twin), torch.compile(twin))}
    assert len(digests) == 1
    with torch.no_grad():
        twin.network[1].bias[0] = torch.nextafter(twin.network[1].bias[0], torch.tensor(9.0))
    assert weights_digest(twin) not in digests
    assert weights_digest(net.double()) not in digests
