import csv
import math
from copy import deepcopy
from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from tiny import Noise, Pictures, network, trainer
from torch.utils.data import DataLoader, TensorDataset

from ersde_lit.data import Augment
from ersde_lit.denoisers import EDA, BiasField, FieldNoise, LogNormal, NoiseLaw, PairNoise, White
from ersde_lit.denoisers.labels import labels_of_seeds
from ersde_lit.sampling.generate import generate
from ersde_lit.solvers import DDIM, ERSDE, Heun, SeededNoise, TableSampler, default
from ersde_lit.training import EMA, AdamWConfig, DiffusionModule, load
from ersde_lit.training.spec import build


def test_training_lowers_the_loss_on_fixed_noise(tmp_path) -> None:
    torch.manual_seed(0)
    module = DiffusionModule(network(), optimizer=AdamWConfig(lr=1e-2), ema=EMA(half_life=20, ramp_up=0.05))
    runner = trainer(tmp_path, max_epochs=40, check_val_every_n_epoch=40)
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
    module = DiffusionModule(network(), optimizer=AdamWConfig(lr=1e-2), ema=ema)
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
    module = DiffusionModule(network(), optimizer=AdamWConfig(lr=1.0, warmup=32, decay=0.5))
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
    module.denoiser.loss = lambda *args: given.append(args[3]) or original(*args)
    trainer(tmp_path, max_epochs=50, check_val_every_n_epoch=50).fit(module, datamodule=Noise(32))
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
    expected = module.sample(range(6), labels, sampler, nfe=6)
    for same in (sampler, ERSDE(1, "ode"), DDIM(), "ddim"):
        torch.testing.assert_close(module.sample(range(6), labels, solver=same, nfe=6), expected)


@pytest.mark.parametrize("solver", [Heun(), "heun"])
def test_samplers_that_are_no_table_are_solvers_too(fitted, solver) -> None:
    module, _ = fitted
    expected = Heun()(module.ema_denoiser, SeededNoise([4], (1, 4, 4)), 5, torch.tensor([1]))
    assert torch.equal(module.sample([4], [1], nfe=5, solver=solver), expected)


def test_what_is_no_solver_is_refused(fitted) -> None:
    with pytest.raises(TypeError, match="sampler"):
        fitted[0].sample([0], [0], sampler="ddim")
    with pytest.raises(ValueError, match="unknown sampler 'eular', choose from"):
        fitted[0].sample([0], [0], solver="eular")


def test_prediction_gives_each_image_its_index_as_seed_and_its_own_label(fitted, tmp_path) -> None:
    module, _ = fitted
    first, *_ = trainer(tmp_path).predict(module, DataLoader(Noise().loader().dataset, batch_size=8))
    torch.testing.assert_close(first, module.sample(range(8), torch.arange(8) % 3))


def test_labels_that_are_not_given_follow_from_the_seeds_as_everywhere(fitted) -> None:
    module, _ = fitted
    images = module.sample(range(6), nfe=4)
    (block,) = generate(module.ema_denoiser, default(4), range(6), 4)
    assert torch.equal(images, block.images)
    assert torch.equal(images, module.sample(range(6), labels_of_seeds(range(6), 3), nfe=4))
    assert not torch.allclose(images, module.sample(range(6), [-1] * 6, nfe=4))
    assert DiffusionModule(network(num_classes=0)).sample([0], nfe=2).shape == (1, 1, 4, 4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_are_whole_numbers_of_any_kind(fitted, dtype) -> None:
    labels = torch.tensor([0, 2])
    assert torch.equal(fitted[0].sample([0, 1], labels.to(dtype), nfe=2), fitted[0].sample([0, 1], labels, nfe=2))


@pytest.mark.parametrize("labels", [[0], [0, 3], [0, -2], [0.0, 1.0], [True, False], [], [[0, 1]]])
def test_labels_must_fit(fitted, labels) -> None:
    with pytest.raises(ValueError, match="labels"):
        fitted[0].sample([0, 1], torch.tensor(labels))


def test_an_unconditional_model_takes_no_labels() -> None:
    with pytest.raises(ValueError, match="the model is unconditional"):
        DiffusionModule(network(num_classes=0)).sample([0], [0])


class Recorder:
    """What the denoiser is trained with, image by image."""

    def __init__(self, module: DiffusionModule) -> None:
        self.calls: list[tuple] = []
        self.dropout: list[float] = []
        original = module.denoiser.loss

        def loss(*args):
            self.calls.append(args)
            self.dropout.append(torch.rand(()).item())  # what dropout would draw from
            return original(*args)

        module.denoiser.loss = loss

    def column(self, k: int) -> torch.Tensor:
        return torch.cat([call[k] for call in self.calls])


def recorded(folder, seed: int = 0, images_seen: int = 0, **options) -> Recorder:
    pl.seed_everything(seed, verbose=False)
    module = DiffusionModule(network(augment_dim=9), label_dropout=0.3, augment=Augment(0.5))
    module.images_seen = module._images_at_step = images_seen
    torch.manual_seed(torch.seed())  # nothing may depend on the global generator
    recorder = Recorder(module)
    trainer(folder, max_epochs=2, **options).fit(module, datamodule=Pictures(8))
    return recorder


def test_an_image_is_trained_with_the_same_however_steps_are_shared(tmp_path) -> None:
    whole, parts = recorded(tmp_path), recorded(tmp_path, accumulate_grad_batches=4)
    assert len(parts.calls) == 4 * len(whole.calls)
    for k in range(5):  # x0 as augmented, lam, eps, labels as dropped, conditions
        torch.testing.assert_close(parts.column(k), whole.column(k), msg=str(k))
    assert whole.column(4).shape == (80, 9)


def test_no_two_images_get_the_same_noise_nor_two_runs(tmp_path) -> None:
    once = recorded(tmp_path)
    assert len({tuple(eps.flatten().tolist()) for eps in once.column(2)}) == 80
    assert len(set(once.column(1).tolist())) == 80
    assert len(set(once.dropout)) == len(once.dropout)
    again, other, later = recorded(tmp_path), recorded(tmp_path, seed=1), recorded(tmp_path, images_seen=40)
    assert torch.equal(again.column(2), once.column(2))
    assert again.dropout == once.dropout
    assert not set(other.column(1).tolist()) & set(once.column(1).tolist())
    assert torch.equal(later.column(2)[:40], once.column(2)[40:])  # a resumed run does not replay its beginning


def test_a_rank_draws_for_its_own_images() -> None:
    module = DiffusionModule(network())
    module._trainer = type("Ranked", (), {"global_rank": 1, "world_size": 3})()  # type: ignore[assignment]
    assert list(module._dealt(12, 4)) == [13, 16, 19, 22]


def test_the_training_loss_is_that_of_the_whole_step(tmp_path) -> None:
    curves = []
    for k, batches in enumerate((1, 4)):
        pl.seed_everything(0, verbose=False)
        logger = CSVLogger(tmp_path, "", f"{k}")
        runner = trainer(tmp_path, logger=logger, log_every_n_steps=1, accumulate_grad_batches=batches)
        runner.fit(DiffusionModule(network()), datamodule=Pictures(8))
        rows = csv.DictReader((tmp_path / f"{k}" / "metrics.csv").open())
        curves.append([float(row["train/loss"]) for row in rows if row["train/loss"]])
    assert len(curves[0]) == 10
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_augmented_models_keep_their_augmentation_and_are_sampled_without(tmp_path) -> None:
    module = DiffusionModule(network(augment_dim=9), augment=Augment(0.2), label_dropout=0.1)
    assert build(module.spec)["augment"] == Augment(0.2)
    given = []
    module.ema_denoiser.network.register_forward_hook(lambda net, args, out: given.append(args[3]))
    module.sample([0], nfe=2)
    assert given == [None, None]


def poisoned(value: float, steps: range, optimizer: AdamWConfig, folder, **options) -> DiffusionModule:
    """Trains with the gradient of one weight set to a value in some steps."""
    pl.seed_everything(0, verbose=False)
    module = DiffusionModule(network(), optimizer=optimizer)
    weight = module.denoiser.network.enter.weight
    weight.register_hook(lambda grad: grad * value if module.global_step in steps else grad)
    trainer(folder, max_epochs=1, **options).fit(module, datamodule=Pictures(8))
    return module


@pytest.mark.parametrize(("value", "counted"), [(math.nan, 0.0), (math.inf, 1e5), (-math.inf, -1e5)])
def test_gradients_that_are_not_finite_count_as_published(value: float, counted: float, tmp_path) -> None:
    module = DiffusionModule(network())
    weight = module.denoiser.network.enter.weight
    weight.grad = torch.full_like(weight, value)
    module.on_before_optimizer_step(torch.optim.SGD([weight], 1))
    assert torch.equal(weight.grad, torch.full_like(weight, counted))
    broken = poisoned(math.nan, range(1, 3), AdamWConfig(1e-2), tmp_path, gradient_clip_val=1.0)
    assert all(value.isfinite().all() for value in broken.state_dict().values())


def test_a_scaler_leaves_such_a_step_out(tmp_path) -> None:
    options = {"max_steps": 3, "limit_val_batches": 0}
    weights = []
    for steps in (range(2, 3), range(0)):
        scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8))
        scaled.precision = "bf16-mixed"  # what a CPU computes in
        module = poisoned(math.inf, steps, AdamWConfig(1e-2), tmp_path, plugins=[scaled], **options)
        weights.append(module.denoiser.network.leave[2].weight.clone())
        options["max_steps"] = 2
    assert torch.equal(*weights)  # the third step was left out; weights without poison would have moved


def test_a_loss_that_stays_not_finite_ends_the_run(tmp_path) -> None:
    module = DiffusionModule(network())
    module.denoiser.network.leave[2].register_forward_hook(lambda layer, args, out: out * math.nan)
    runner = trainer(tmp_path, max_epochs=-1, limit_val_batches=0)
    with pytest.raises(FloatingPointError, match="not been finite for 100 steps, up to step 100: lower the learning"):
        runner.fit(module, datamodule=Pictures(8))
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_some_losses_that_are_not_finite_do_not(tmp_path) -> None:
    module = DiffusionModule(network())
    module.denoiser.network.leave[2].register_forward_hook(
        lambda layer, args, out: out * math.nan if module.global_step % 50 else out
    )
    trainer(tmp_path, max_steps=120, limit_val_batches=0).fit(module, datamodule=Pictures(8))


def test_strategies_that_shard_weights_are_refused(tmp_path) -> None:
    module = DiffusionModule(network())
    module._trainer = type("Sharded", (), {"strategy": ModelParallelStrategy(), "datamodule": None})()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"whole on every device: use --trainer\.strategy ddp or fsdp2"):
        module.setup("fit")


def test_compiled_and_channels_last_networks_keep_their_names(tmp_path) -> None:
    plain, module = DiffusionModule(network()), DiffusionModule(network())
    module.load_state_dict(plain.state_dict())
    module.to(memory_format=torch.channels_last).denoiser.network.compile(backend="eager")
    assert list(module.state_dict()) == list(plain.state_dict())
    for each in (plain, module):
        pl.seed_everything(0, verbose=False)
        trainer(tmp_path, max_epochs=1).fit(each, datamodule=Pictures(8))
    torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


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
    module, runner = DiffusionModule(network(num_classes=0)), trainer(tmp_path)
    runner.fit(module, datamodule=Noise())
    assert runner.predict(module, DataLoader(Noise().loader().dataset, batch_size=8))[0].shape == (8, 1, 4, 4)


def test_label_dropout_is_a_probability() -> None:
    with pytest.raises(ValueError, match="probability"):
        DiffusionModule(network(), label_dropout=2)


def test_the_density_is_the_published_one_unless_given() -> None:
    assert DiffusionModule(network()).density == LogNormal(-1.2, 1.2)
    assert DiffusionModule(network(), density=LogNormal(0, 1)).density == LogNormal(0, 1)


class Pairs(Noise):
    """Random images of 3 classes, each with its mirror image as the degraded one."""

    def loader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.images, torch.arange(32) % 3, self.images.flip(-1)), self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


def restoring(law: NoiseLaw, **options) -> DiffusionModule:
    torch.manual_seed(0)
    recipe = {"optimizer": AdamWConfig(lr=1e-2), "ema": EMA(half_life=20, ramp_up=0.05)}
    return DiffusionModule(network(num_classes=0), EDA(), "eda", "eda", noise=law, **(recipe | options))


LAWS = [FieldNoise(std=0.5), BiasField(FieldNoise(2, 0, 0.4)), PairNoise(std=1.4)]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_a_model_of_a_noise_law_is_kept_in_its_checkpoint_and_restores(law: NoiseLaw, tmp_path) -> None:
    module, runner = restoring(law), trainer(tmp_path, max_epochs=20)
    data = Pairs() if isinstance(law, PairNoise) else Pictures(batch_size=8)
    (before,) = runner.validate(module, datamodule=data, verbose=False)
    runner.fit(module, datamodule=data)
    (after,) = runner.validate(module, datamodule=data, verbose=False)
    assert after["val/loss"] < 0.9 * before["val/loss"]

    runner.save_checkpoint(tmp_path / "last.ckpt")
    twin = load(tmp_path / "last.ckpt")
    assert twin.denoiser.noise == twin.ema_denoiser.noise == law
    assert twin.spec == module.spec
    degraded = 2 * torch.rand(3, 1, 4, 4) - 1
    restored = module.restore(degraded, nfe=3)
    assert torch.equal(twin.restore(degraded, nfe=3), restored)
    assert not torch.equal(module.restore(degraded, "ddim", nfe=3), restored)
    with pytest.raises(ValueError, match=f"trained on {type(law).__name__}, so it restores images and samples none"):
        twin.sample(range(2))


def test_levels_beyond_the_degraded_image_are_not_trained() -> None:
    law = {"process": EDA(), "preconditioning": "eda", "prediction": "eda", "noise": PairNoise()}
    with pytest.raises(ValueError, match="the density reaches noise level"):
        DiffusionModule(network(num_classes=0), density=LogNormal(-0.8, 1.2), **law)
    module = DiffusionModule(network(num_classes=0), density=LogNormal(0, 0), **law)  # regression
    assert module.density.lam(torch.rand(4), EDA()).tolist() == [1, 1, 1, 1]


def test_training_noise_is_the_laws_and_pairs_are_augmented_alike() -> None:
    law, seeds = PairNoise(), range(100, 108)
    module = restoring(law, augment=Augment(1.0))
    given = []
    module.denoiser.loss = lambda *args: given.append(args) or torch.zeros(8)
    images = torch.randn(8, 1, 4, 4)
    module.image_losses((images, torch.zeros(8, dtype=torch.int64), images * 2), seeds)
    ((x0, lam, noise, *_),) = given
    assert not torch.equal(x0, images)
    assert torch.equal(noise, law.draw(seeds, x0, 2 * x0))
    assert (lam <= 1).all()


def test_pairs_are_needed_where_noise_is_of_pairs(tmp_path) -> None:
    with pytest.raises(ValueError, match="PairNoise is learned from pairs"):
        trainer(tmp_path).fit(restoring(PairNoise()), datamodule=Noise())


def test_training_does_not_go_on_with_another_law(tmp_path) -> None:
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(restoring(FieldNoise()), datamodule=Pictures(batch_size=8))
    runner.save_checkpoint(tmp_path / "last.ckpt")
    for law, message in ((FieldNoise(degree=2), r"\.degree is 3 there and 2 here"), (BiasField(), ".*BiasField")):
        with pytest.raises(ValueError, match=rf"the checkpoint is of another model: noise{message}"):
            trainer(tmp_path).fit(restoring(law), datamodule=Pictures(batch_size=8), ckpt_path=tmp_path / "last.ckpt")
    other = DiffusionModule(network(num_classes=0))
    with pytest.raises(ValueError, match=r"the checkpoint is of another model: .*noise is .*FieldNoise there"):
        trainer(tmp_path).fit(other, datamodule=Pictures(batch_size=8), ckpt_path=tmp_path / "last.ckpt")


def test_a_model_of_white_noise_is_as_before_there_were_other_laws(tmp_path) -> None:
    runs = []
    for options in ({}, {"noise": White()}):
        torch.manual_seed(0)
        module = DiffusionModule(network(), optimizer=AdamWConfig(lr=1e-2), **options)
        trainer(tmp_path, max_steps=2).fit(module, datamodule=Noise())
        assert "noise" not in module.spec
        runs.append((module.spec, module.state_dict(), module.sample(range(3), [0, 1, 2], nfe=4)))
    (spec, weights, samples), (other, others, again) = runs
    assert spec == other
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert torch.equal(samples, again)


def test_a_model_that_restores_must_know_images_without_labels() -> None:
    classes = network(num_classes=3)
    with pytest.raises(ValueError, match="images to restore have no labels"):
        DiffusionModule(classes, EDA(), "eda", "eda", noise=FieldNoise())
    module = DiffusionModule(classes, EDA(), "eda", "eda", noise=FieldNoise(), label_dropout=0.1)
    assert module.restore(torch.zeros(2, *classes.image_shape), nfe=1).shape[0] == 2


def test_double_precision_restores_in_double() -> None:
    module = restoring(FieldNoise(eta=2.0)).double()
    degraded = 2 * torch.rand(2, 1, 4, 4, dtype=torch.float64) - 1
    assert module.restore(degraded, ERSDE(2, "sde"), nfe=3).dtype == torch.float64
