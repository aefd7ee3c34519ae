import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from tiny import trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ersde_lit.training import AdamWConfig


def test_the_learning_rate_rises_stays_and_falls() -> None:
    recipe = AdamWConfig(warmup=1000, decay=0.25)
    assert recipe.factor(0, 0.0) == 0
    assert recipe.factor(500, 0.1) == pytest.approx(0.5)
    assert recipe.factor(5000, 0.5) == recipe.factor(5000, 0.75) == 1
    assert recipe.factor(5000, 0.875) == pytest.approx(0.5)
    assert recipe.factor(9000, 1.0) == 0 == recipe.factor(9000, 1.1)


def test_a_cosine_falls_from_1_to_0_with_no_slope_at_its_ends() -> None:
    recipe = AdamWConfig(decay=1.0, decay_shape="cosine")
    for progress in (0.0, 0.1, 0.5, 0.9, 1.0, 1.2):
        expected = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        assert recipe.factor(10**6, progress) == pytest.approx(expected, abs=1e-12)
    assert AdamWConfig(decay=0.5, decay_shape="cosine").factor(1, 0.75) == pytest.approx(0.5)


def test_the_rate_falls_as_the_inverse_square_root_of_images() -> None:
    recipe = AdamWConfig(warmup=100, constant=1000)
    assert recipe.factor(50, 0.0) == 0.5
    assert recipe.factor(1000, 0.1) == 1
    assert recipe.factor(4000, 0.4) == 0.5
    assert recipe.factor(100_000, 1.0) == pytest.approx(0.1)


def test_neither_is_needed() -> None:
    assert AdamWConfig().factor(0, 0.0) == AdamWConfig().factor(10**9, 1.0) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"warmup": -1},
        {"decay": 1.5},
        {"constant": -1},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"weight_decay": -0.1},
        {"eps": -1e-8},
    ],
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="AdamW needs"):
        AdamWConfig(**settings)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="linear or cosine"):
        AdamWConfig(decay_shape="square")  # type: ignore[arg-type]


def test_without_weight_decay_it_is_adam() -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64)) for _ in range(2))
    optimizers = AdamWConfig(lr=1e-3, betas=(0.9, 0.999)).optimizer([ours]), torch.optim.Adam([theirs], 1e-3, eps=1e-8)
    for step in range(20):
        for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
            weights.grad = torch.sin(weights.detach() * 5 + step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert optimizers[0].defaults["fused"]


def test_weights_decay_apart_from_gradients() -> None:
    weights = nn.Parameter(torch.ones(3))
    weights.grad = torch.zeros(3)
    AdamWConfig(lr=0.1, weight_decay=0.5).optimizer([weights]).step()
    torch.testing.assert_close(weights.detach(), torch.full((3,), 0.95))


class Line(pl.LightningModule):
    """loss = slope * weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.gradients: list[float] = []
        self.weights: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return batch[0].sum() * self.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return AdamWConfig(lr=0.1).optimizer(self.parameters())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.weight.grad is not None
        self.gradients.append(self.weight.grad.item())
        torch.nan_to_num(self.weight.grad, posinf=1e5, out=self.weight.grad)

    def on_train_batch_end(self, *args: object) -> None:
        self.weights.append(self.weight.item())


def test_fp16_gradients_are_seen_unscaled_and_an_overflow_is_left_out(tmp_path) -> None:
    line, scaler = Line(), torch.amp.GradScaler("cpu", init_scale=1024)
    fp16 = MixedPrecision("16-mixed", "cpu", scaler)
    slopes = DataLoader(TensorDataset(torch.tensor([2.0, math.inf, 3.0])))
    trainer(tmp_path, max_epochs=1, plugins=[fp16], gradient_clip_val=10.0).fit(line, slopes)
    assert line.gradients == [2, math.inf, 3]
    assert line.weights == pytest.approx([0.9, 0.9, 0.8], abs=2e-3)
    assert scaler.get_scale() == 512


def test_its_numbers_reach_adam() -> None:
    recipe = AdamWConfig(lr=0.1, betas=(0.8, 0.9), weight_decay=0.01, eps=1e-12)
    (group,) = recipe.optimizer([nn.Parameter(torch.ones(1))]).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (0.1, (0.8, 0.9), 0.01, 1e-12)
