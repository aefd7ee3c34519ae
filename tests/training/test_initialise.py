"""Fine-tuning takes the averaged weights of a checkpoint, nothing else, and names what does not fit."""

import pytest
import torch
from tiny import Pictures, network, trainer

from ersde_lit.training import DiffusionModule
from ersde_lit.training.averaged import SPEC_KEY
from ersde_lit.training.checkpoint import read
from ersde_lit.training.initialise import initialise


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "x.ckpt"
    runner = trainer(path.parent, max_epochs=1)
    runner.fit(DiffusionModule(network()), datamodule=Pictures(8))
    runner.save_checkpoint(path)
    return read(path)


def averaged(checkpoint) -> dict[str, torch.Tensor]:
    prefix = "ema_denoiser."
    return {n.removeprefix(prefix): w for n, w in checkpoint["state_dict"].items() if n.startswith(prefix)}


def test_raw_and_averaged_weights_are_the_checkpoints_averages(checkpoint) -> None:
    module = DiffusionModule(network(dropout=0.3), label_dropout=0.1)
    initialise(module, checkpoint)
    assert not torch.equal(
        averaged(checkpoint)["network.enter.weight"], checkpoint["state_dict"]["denoiser.network.enter.weight"]
    )
    for copy in (module.denoiser, module.ema_denoiser):
        assert all(torch.equal(weight, averaged(checkpoint)[name]) for name, weight in copy.state_dict().items())
    assert module.images_seen == 0


def test_the_copies_do_not_share_memory(checkpoint) -> None:
    module = DiffusionModule(network())
    initialise(module, checkpoint)
    module.denoiser.network.enter.weight.data.zero_()
    assert module.ema_denoiser.network.enter.weight.any()
    assert averaged(checkpoint)["network.enter.weight"].any()


@pytest.mark.parametrize("classes", [0, 5])
def test_other_classes_are_named_and_may_be_skipped(checkpoint, classes: int) -> None:
    torch.manual_seed(5)
    module = DiffusionModule(network(num_classes=classes))
    before = {name: weight.clone() for name, weight in module.denoiser.state_dict().items()}
    with pytest.raises(ValueError, match=f"network.num_classes is 3 there and {classes} here; --init_skip embed_label"):
        initialise(module, checkpoint)
    assert all(torch.equal(weight, before[name]) for name, weight in module.denoiser.state_dict().items())
    initialise(module, checkpoint, ["label"])
    for name, weight in module.denoiser.state_dict().items():
        assert torch.equal(weight, before[name] if "label" in name else averaged(checkpoint)[name])


def test_a_learned_uncertainty_may_be_skipped_on_either_side(checkpoint) -> None:
    module = DiffusionModule(network(), uncertainty=True)
    first = module.denoiser.uncertainty.linear.weight.clone()
    with pytest.raises(ValueError, match="False there and True here; --init_skip uncertainty"):
        initialise(module, checkpoint)
    initialise(module, checkpoint, ["uncertainty"])
    assert torch.equal(module.denoiser.network.enter.weight, averaged(checkpoint)["network.enter.weight"])
    assert torch.equal(module.denoiser.uncertainty.linear.weight, first)
    older = {**checkpoint, SPEC_KEY: {k: v for k, v in checkpoint[SPEC_KEY].items() if k != "uncertainty"}}
    with pytest.raises(ValueError, match="False there and True here; --init_skip uncertainty"):
        initialise(module, older)
    with_it = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(with_it)
    without = DiffusionModule(network())
    with pytest.raises(ValueError, match="uncertainty is True there and False here"):
        initialise(without, with_it)
    initialise(without, with_it, ["uncertainty"])
    assert torch.equal(without.denoiser.network.enter.weight, module.denoiser.network.enter.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 16}, "network.width is 8 there and 16 here"),
        ({"sigma_data": 0.7}, "sigma_data is 0.5 there and 0.7 here"),
        ({"prediction": "x0"}, "prediction is edm there and x0 here"),
        ({"image_shape": (1, 8, 8), "num_classes": 5}, r"network.image_shape.*num_classes is 3 there and 5 here"),
    ],
)
def test_other_settings_are_refused_by_key_and_value(checkpoint, settings, message: str) -> None:
    of_network = {k: v for k, v in settings.items() if k not in ("sigma_data", "prediction")}
    module = DiffusionModule(network(**of_network), **{k: v for k, v in settings.items() if k not in of_network})
    with pytest.raises(ValueError, match=message):
        initialise(module, checkpoint, ["label"])


def test_a_word_that_no_weight_contains_is_refused(checkpoint) -> None:
    with pytest.raises(ValueError, match=r"--init_skip lable: .*embed_label"):
        initialise(DiffusionModule(network()), checkpoint, ["lable"])
