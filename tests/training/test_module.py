from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from tiny import Noise, network, trainer
from torch.utils.data import DataLoader

from ersde_lit.denoisers import LogNormal
from ersde_lit.solvers import ERSDE, TableSampler
from ersde_lit.training import EMA, AdamW, DiffusionModule


def test_training_lowers_the_loss_on_fixed_noise(tmp_path) -> None:
    torch.manual_seed(0)
    module = DiffusionModule(network(), optimizer=AdamW(lr=1e-2), ema=EMA(half_life=20, ramp_up=0.05))
    runner = trainer(tmp_path, max_epochs=40)
    (before,) = runner.validate(module, datamodule=Noise(), verbose=False)
    (again,) = runner.validate(module, datamodule=Noise(), verbose=False)
    assert before == again  # nothing random in it
    runner.fit(module, datamodule=Noise())
    assert runner.callback_metrics["val/loss"] < 0.8 * before["val/loss"]


def test_the_validation_loss_does_not_depend_on_the_batch_size(tmp_path) -> None:
    module = DiffusionModule(network())
    values = [trainer(tmp_path).validate(module, datamodule=Noise(b), verbose=False)[0]["val/loss"] for b in (8, 32)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_averaged_weights_follow_the_raw_ones_step_by_step(tmp_path) -> None:
    torch.manual_seed(0)
    ema = EMA(half_life=20, ramp_up=0.5)
    module = DiffusionModule(network(), optimizer=AdamW(lr=1e-2), ema=ema)
    expected = deepcopy(module.denoiser)
    seen = []

    original = module.optimizer_step

    def step(*args, **kwargs):
        original(*args, **kwargs)
        seen.append(module.images_seen)
        ema.update(expected, module.denoiser, 8, module.images_seen)

    module.optimizer_step = step  # type: ignore[method-assign]
    trainer(tmp_path).fit(module, datamodule=Noise())
    assert seen == [8 * (k + 1) for k in range(8)]  # 2 epochs of 4 batches of 8
    for kept, wanted in zip(module.ema_denoiser.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(kept, wanted)
    assert not torch.equal(module.ema_denoiser.network.enter.weight, module.denoiser.network.enter.weight)


def test_accumulated_batches_count_as_one_step_of_the_average(tmp_path) -> None:
    module = DiffusionModule(network())
    decays = []
    module.ema = type("Spy", (), {"update": lambda self, a, c, images, seen: decays.append((images, seen))})()
    trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2).fit(module, datamodule=Noise())
    assert decays == [(16, 16), (16, 32)]


def test_evaluation_uses_the_averaged_weights(fitted) -> None:
    module, runner = fitted
    with torch.no_grad():
        for p in module.denoiser.parameters():
            p.fill_(float("nan"))
    (result,) = runner.validate(module, datamodule=Noise(), verbose=False)
    assert result["val/loss"] == result["val/loss"]  # not NaN
    assert module.sample([0, 1], torch.tensor([0, 1]), nfe=4).isfinite().all()


def test_averaged_weights_never_drop_out() -> None:
    module = DiffusionModule(network(dropout=0.5)).train()
    assert module.denoiser.training
    assert not any(m.training for m in module.ema_denoiser.modules())


def test_the_learning_rate_follows_the_recipe(tmp_path) -> None:
    module = DiffusionModule(network(), optimizer=AdamW(lr=1.0, warmup=32, decay=0.5))
    rates = []
    original = module.training_step

    def step(batch, batch_idx):
        rates.append(module.optimizers().param_groups[0]["lr"])
        return original(batch, batch_idx)

    module.training_step = step  # type: ignore[method-assign]
    trainer(tmp_path).fit(module, datamodule=Noise())
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25])


def test_label_dropout_replaces_that_share_of_labels(tmp_path) -> None:
    torch.manual_seed(0)
    module = DiffusionModule(network(), label_dropout=0.25)
    given = []
    original = module.denoiser.loss
    module.denoiser.loss = lambda x0, lam, eps, labels: given.append(labels) or original(x0, lam, eps, labels)
    trainer(tmp_path, max_epochs=50).fit(module, datamodule=Noise())
    share = (torch.cat(given) == -1).double().mean().item()
    assert share == pytest.approx(0.25, abs=0.04)


def test_samples_depend_on_seed_and_label_alone(fitted) -> None:
    module, _ = fitted
    labels = torch.arange(6) % 3
    together = module.sample(range(6), labels, nfe=6)
    assert together.shape == (6, 1, 4, 4)
    torch.testing.assert_close(module.sample([4], labels[4:5], nfe=6), together[4:5], rtol=1e-4, atol=1e-4)
    sampler = TableSampler(ERSDE(1, "ode"))
    assert not torch.allclose(module.sample(range(6), labels, sampler, nfe=6), together, atol=1e-3)


def test_prediction_gives_each_image_its_index_as_seed_and_its_own_label(fitted, tmp_path) -> None:
    module, _ = fitted
    first, *_ = trainer(tmp_path).predict(module, DataLoader(Noise().loader().dataset, batch_size=8))
    torch.testing.assert_close(first, module.sample(range(8), torch.arange(8) % 3))


def test_a_conditional_model_asks_for_labels(fitted) -> None:
    with pytest.raises(ValueError, match=r"pass labels in 0 \.\. 2"):
        fitted[0].sample([0])
    assert DiffusionModule(network(), label_dropout=0.1).sample([0], nfe=2).shape == (1, 1, 4, 4)
    assert DiffusionModule(network(num_classes=0)).sample([0], nfe=2).shape == (1, 1, 4, 4)


@pytest.mark.parametrize("labels", [torch.tensor([0]), torch.tensor([0, 3]), torch.tensor([0, -2])])
def test_labels_must_fit(fitted, labels) -> None:
    with pytest.raises(ValueError, match="for 2 seeds"):
        fitted[0].sample([0, 1], labels)


def test_ranks_and_resumed_runs_draw_noise_of_their_own() -> None:
    def first_draw(rank: int, images_seen: int) -> float:
        torch.manual_seed(0)
        module = DiffusionModule(network())
        module.images_seen = images_seen
        module._trainer = type("Ranked", (), {"global_rank": rank})()  # type: ignore[assignment]
        module.on_fit_start()
        return torch.rand(()).item()

    assert len({first_draw(0, 0), first_draw(1, 0), first_draw(0, 1000)}) == 3
    assert first_draw(1, 1000) == first_draw(1, 1000)


def test_a_loaded_module_trains_in_training_mode(tmp_path) -> None:
    module = DiffusionModule(network(dropout=0.5)).eval()
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=Noise())
    assert module.denoiser.training


def test_what_a_checkpoint_cannot_hold_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="cannot be kept in a checkpoint"):
        DiffusionModule(network(), density=Drawn(torch.ones(1)))


@dataclass(frozen=True)
class Drawn(LogNormal):
    """A density with a tensor in it."""

    mean: torch.Tensor = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (1, 8, 8)}, r"images are \(1, 4, 4\), the network's \(1, 8, 8\)"),
        ({"num_classes": 5}, "the data has 3 classes, the network 5"),
    ],
)
def test_data_and_network_must_agree(tmp_path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(DiffusionModule(network(**changes)), datamodule=Noise())


def test_an_unconditional_network_ignores_labels(tmp_path) -> None:
    trainer(tmp_path).fit(DiffusionModule(network(num_classes=0)), datamodule=Noise())


def test_label_dropout_is_a_probability() -> None:
    with pytest.raises(ValueError, match="probability"):
        DiffusionModule(network(), label_dropout=2)


def test_the_density_is_the_published_one_unless_given() -> None:
    assert DiffusionModule(network()).density == LogNormal(-1.2, 1.2)
    assert DiffusionModule(network(), density=LogNormal(0, 1)).density == LogNormal(0, 1)
