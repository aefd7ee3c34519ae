import csv
import math
import pickle
import runpy
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from einops import rearrange
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from ranks import run_on_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ersde_lit.callbacks import FIDCallback
from ersde_lit.data import Digits
from ersde_lit.errors import UserError
from ersde_lit.metrics import (
    Features,
    Scores,
    classifier,
    nearest_distances,
    reference_of,
    write_reference,
)
from ersde_lit.networks import ClassifierEncoder
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import ERSDE, Heun, Sampler, SavedTables, TableSampler, write_tables
from ersde_lit.training import NoisyClassifier

pytestmark = pytest.mark.usefixtures("cache")
ER_SDE = TableSampler(ERSDE(order=2))


def make(**given):
    return FIDCallback(**{"samplers": {"er_sde": ER_SDE}, "nfes": [3], "num_samples": 60, "batch_size": 25, **given})


def trainer_with(tmp_path, *callbacks, **given):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    short = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    save = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return Trainer(
        **quiet | short | {"logger": False, "enable_checkpointing": save} | given,
        default_root_dir=tmp_path,
        accelerator="cpu",
        callbacks=list(callbacks),
    )


def validated(tmp_path, model, **given):
    trainer = trainer_with(tmp_path, make(**given))
    trainer.validate(model, datamodule=Digits(), verbose=False)
    return {key: value.item() for key, value in trainer.callback_metrics.items()}


def test_logs_what_generating_and_measuring_by_hand_gives(tmp_path, remembers):
    remembers.ema_denoiser.x0 *= 0.8  # dimmed copies, some nearer than others
    heun, first, count, near = Heun(), 7, 60, 30
    samplers, given = {"er_sde": ER_SDE, "heun": heun}, {"nfes": [4, 5], "num_samples": count, "nearest_images": near}
    values = validated(tmp_path, remembers, samplers=samplers, first_seed=first, **given)
    cells = ("er_sde/nfe4", "er_sde/nfe5", "heun/nfe3", "heun/nfe5")  # a Heun of 4 calls makes 3
    assert set(values) == {"val/loss"} | {f"{kind}/{cell}" for kind in ("fid", "nearest") for cell in ("real", *cells)}

    data = Digits()
    features, train, held_out = classifier(data), data.split("train").images, data.held_out(count)
    scores = Scores(features, reference_of(data, features))
    made = generate(remembers.ema_denoiser, heun, range(first, first + count), 5)
    for name, images in {"heun/nfe5": torch.cat([quantise(b.images) for b in made]), "real": held_out}.items():
        scores.reset()
        scores.update(images)
        assert values[f"fid/{name}"] == pytest.approx(scores.compute()["fid"], rel=1e-5)
        nearest = nearest_distances(images[:near], train).mean().item()
        assert nearest > 1
        assert values[f"nearest/{name}"] == pytest.approx(nearest, rel=1e-5)


def test_samples_averaged_weights_and_sees_that_they_memorise(tmp_path, remembers):
    by_heart = validated(tmp_path, remembers)
    assert by_heart["fid/er_sde/nfe3"] < 2
    assert by_heart["nearest/er_sde/nfe3"] == 0
    assert by_heart["nearest/real"] > 30
    remembers.ema_denoiser = remembers.denoiser  # has learnt nothing
    assert validated(tmp_path, remembers)["fid/er_sde/nfe3"] > 20


def test_values_do_not_depend_on_the_batch_size(tmp_path, remembers):
    a, b = (validated(tmp_path, remembers, batch_size=size, nearest_images=33) for size in (60, 7))
    assert a == pytest.approx(b, rel=1e-5)


def test_a_fit_logs_pictures_and_values_at_the_same_steps_and_can_be_monitored(tmp_path, remembers):
    best = ModelCheckpoint(tmp_path / "best", monitor="fid/er_sde/nfe3", filename="{epoch}")
    logger = TensorBoardLogger(tmp_path, name="", version="logs")
    trainer = trainer_with(tmp_path, make(nfes=[2, 3]), best, max_epochs=2, num_sanity_val_steps=2, logger=logger)
    before = set(remembers.state_dict())
    trainer.fit(remembers, datamodule=Digits())
    assert best.best_model_score == trainer.callback_metrics["fid/er_sde/nfe3"]
    assert set(remembers.state_dict()) == before
    assert set(torch.load(best.best_model_path, weights_only=True)["state_dict"]) == before

    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    for nfe in (2, 3):
        steps = [event.step for event in events.Scalars(f"fid/er_sde/nfe{nfe}")]
        assert steps == [event.step for event in events.Images(f"samples/er_sde/nfe{nfe}")] == [1, 3]
    names = [f"er_sde-nfe{nfe}-step{step:07d}.png" for nfe in (2, 3) for step in (1, 3)]  # none of the sanity check
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == names
    assert Image.open(tmp_path / "samples" / names[0]).size == (340, 340)


def test_the_picture_has_a_row_for_each_class(tmp_path, remembers):
    trainer_with(tmp_path, make(columns=4), max_epochs=1).fit(remembers, datamodule=Digits())
    (path,) = (tmp_path / "samples").iterdir()
    pixels = torch.from_numpy(np.array(Image.open(path))).view(10, 34, 4, 34)[:, 1:33:4, :, 1:33:4]
    images = rearrange(pixels, "r h k w -> r k (h w)")
    train, labels = Digits().split("train")
    for label in range(10):
        known = train[labels == label].flatten(1)
        assert (images[label][:, None] == known).all(-1).any(1).all()  # each a copy of a digit of its class


def test_untrained_classes_are_neither_drawn_nor_measured(tmp_path, remembers, monkeypatch):
    asked = []
    remembers.ema_denoiser.trained_classes = (3, 7)
    remembers.ema_denoiser.register_forward_pre_hook(
        lambda _, given, named: asked.extend(named["labels"].tolist()), with_kwargs=True
    )
    trainer_with(tmp_path, make(columns=4), max_epochs=1).fit(remembers, datamodule=Digits())
    (path,) = (tmp_path / "samples").iterdir()
    assert Image.open(path).size == (4 * 34, 2 * 34)
    assert {*asked} == {3, 7}


def test_evaluates_at_the_first_then_every_nth_and_the_last_validation(tmp_path, remembers):
    trainer = trainer_with(tmp_path, make(every_n_validations=3), max_epochs=6)
    trainer.fit(remembers, datamodule=Digits())
    steps = sorted(int(p.stem[-7:]) for p in (tmp_path / "samples").iterdir())
    assert [(step + 1) // 2 for step in steps] == [1, 4, 6]


@pytest.mark.parametrize(
    ("given", "evaluated"),
    [
        ({"max_epochs": 1, "val_check_interval": 2}, [2, 8, 10]),
        ({"max_epochs": 2, "val_check_interval": 4}, [4, 18]),  # the last one of four, 2 steps before the end
        ({"max_epochs": 7, "check_val_every_n_epoch": 2}, [20, 60]),
        ({"max_epochs": 2, "check_val_every_n_epoch": None, "val_check_interval": 7}, [7, 14]),
        ({"max_epochs": -1, "max_steps": 27}, [10, 20]),
        ({"max_epochs": -1, "max_steps": 59, "check_val_every_n_epoch": 2}, [20, 40]),
        ({"max_epochs": -1, "max_steps": 11, "accumulate_grad_batches": 4}, [3, 9]),  # 3 steps an epoch
    ],
)
def test_the_last_validation_is_the_one_that_none_follows(tmp_path, remembers, given, evaluated):
    """Of several validations an epoch, too."""
    trainer = trainer_with(tmp_path, make(every_n_validations=3), limit_train_batches=10, **given)
    trainer.fit(remembers, datamodule=Digits())
    assert sorted(int(p.stem[-7:]) + 1 for p in (tmp_path / "samples").iterdir()) == evaluated


def test_a_resumed_run_keeps_its_best_before_it_measures_again(tmp_path, remembers):
    """ModelCheckpoint raises where what it monitors is not there."""
    watch = make(every_n_validations=3)
    watch.load_state_dict({"validations": 1})
    best = ModelCheckpoint(tmp_path / "best", monitor=watch.monitor)
    trainer_with(tmp_path, watch, best, max_epochs=2).fit(remembers, datamodule=Digits())
    assert [path.stem[-1] for path in (tmp_path / "samples").iterdir()] == ["3"]  # of the last step
    assert math.isfinite(best.best_model_score)


def test_validation_outside_of_training_draws_nothing(tmp_path, remembers):
    validated(tmp_path, remembers)
    assert not (tmp_path / "samples").exists()


def test_a_resumed_run_counts_its_validations_on():
    counted, fresh = make(every_n_validations=3), make(every_n_validations=3)
    counted._validations = 2
    fresh.load_state_dict(counted.state_dict())
    assert fresh._validations == 2
    assert fresh.state_key == counted.state_key != make(num_samples=7).state_key


def test_prints_a_table(tmp_path, remembers, capsys):
    values = validated(tmp_path, remembers, nfes=[2, 3])
    out = capsys.readouterr().out
    for key in ("real", "er_sde/nfe2", "er_sde/nfe3"):
        assert f"{values[f'fid/{key}']:.4g} ({values[f'nearest/{key}']:.1f})" in out
    assert "FID to 1,617 training images of Digits of 8x8, 1 channel; classifier features" in out
    assert "60 held-out images: " in out


@pytest.mark.parametrize(("real", "biased"), [(59, True), (60, False)])
def test_the_table_says_where_real_images_are_too_few_to_compare_with(real: int, biased: bool):
    values = {"fid/real": 0.33, "fid/er_sde/nfe5": 0.11}
    said = make(num_samples=60)._table(values, {"er_sde": [5]}, real, "1,617 training images")
    assert f"{real} real images" in said
    assert ("too high" in said) == biased
    assert "FID of 60 samples to 1,617 training images" in said


def test_what_to_monitor_is_the_first_samplers_largest_nfe_unless_it_may_be_left_out():
    assert make(nfes=[3, 7, 5]).monitor == "fid/er_sde/nfe7"
    assert make(nfes=[3, 7], max_seconds=9.0).monitor == "fid/er_sde/nfe3"
    assert make(samplers={"heun": Heun()}, nfes=[6]).monitor == "fid/heun/nfe5"
    assert make(metrics=["is"]).monitor is None


def test_a_bar_shows_the_images_while_they_are_sampled(tmp_path, remembers):
    class Bar(RichProgressBar):
        shown: ClassVar[list[tuple[str, float, float | None]]] = []

        def on_validation_end(self, trainer, module):
            assert self.progress is not None
            ours = [task for task in self.progress.tasks if "NFE" in task.description]
            self.shown.extend((task.description, task.completed, task.total) for task in ours)
            assert not any(task.visible for task in ours)
            super().on_validation_end(trainer, module)

    trainer = trainer_with(tmp_path, make(nfes=[2, 3]), Bar(), enable_progress_bar=True)
    trainer.validate(remembers, datamodule=Digits(), verbose=False)
    assert Bar.shown == [("FID er_sde, NFE 2", 60, 60), ("FID er_sde, NFE 3", 60, 60)]


def test_can_be_copied_to_other_processes(tmp_path, remembers):
    callback = make()
    pickle.loads(pickle.dumps(callback))
    trainer_with(tmp_path, callback).validate(remembers, datamodule=Digits(), verbose=False)
    pickle.loads(pickle.dumps(callback))


def test_comes_from_yaml(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FIDCallback, "fid")
    config = parser.parse_object({"fid": {"nfes": [5], "samplers": {"mine": {
        "class_path": "ersde_lit.solvers.TableSampler",
        "init_args": {
            "solver": {"class_path": "ersde_lit.solvers.ERSDE", "init_args": {"order": 3, "corrector": 3}},
            "grid": "ersde_lit.solvers.grids.log_uniform",
        },
    }}}})  # fmt: skip
    again = parser.parse_string(parser.dump(config))
    sampler = parser.instantiate(again).fid.samplers["mine"]
    assert sampler.solver == ERSDE(order=3, corrector=3)
    assert sampler.grid.__name__ == "log_uniform"


def test_world_size_changes_nothing_and_a_rank_without_images_is_no_harm(cache):
    script = Path(__file__).with_name("fid_on_ranks.py")
    done = run_on_ranks(script, "on_two_ranks")
    assert done.codes == [0, 0], done.said
    one = runpy.run_path(str(script))["evaluate"](1)
    both, ending = done.values[0]
    assert ending == "features broke"
    assert both == pytest.approx(one, rel=1e-6, nan_ok=True)  # float32 in the log
    assert {key for key, value in both.items() if math.isnan(value)} == {"fid/bad/nfe2", "nearest/bad/nfe2"}


class OneBad(Sampler):
    """A sampler whose image of one seed is not finite: found out by the solver, or only when it is quantised."""

    def __init__(self, seed, found_by_solver=True):
        self.seed, self.found_by_solver = seed, found_by_solver

    def __call__(self, denoiser, noise, nfe, labels=None, callback=None):
        images = ER_SDE(denoiser, noise, nfe, labels, callback)
        bad = noise._seeds.flatten() == self.seed
        if self.found_by_solver and bad.any():
            raise FloatingPointError("the denoiser's output is not finite")
        return images.masked_fill(bad.view(-1, 1, 1, 1), math.nan)


@pytest.mark.parametrize("found_by_solver", [True, False])
def test_one_bad_sample_makes_its_cell_nan_and_training_goes_on(tmp_path, remembers, capsys, found_by_solver):
    samplers = {"bad": OneBad(59, found_by_solver), "good": ER_SDE}
    best = ModelCheckpoint(tmp_path / "best", monitor="fid/bad/nfe3")
    trainer = trainer_with(tmp_path, make(samplers=samplers), best, max_epochs=2)
    with pytest.warns(UserWarning, match="bad/nfe3 cannot be measured, it is logged as NaN: .*(NaN|not finite)"):
        trainer.fit(remembers, datamodule=Digits())
    assert trainer.global_step == 4
    values = trainer.callback_metrics
    assert values["fid/bad/nfe3"].isnan()
    assert values["nearest/bad/nfe3"].isnan()
    assert values["fid/good/nfe3"] < 2
    assert "nan (nan)" in capsys.readouterr().out
    assert len([*(tmp_path / "samples").glob("good*")]) == 2
    assert not [*(tmp_path / "samples").glob("bad*")]  # its picture would have had the seed
    assert (tmp_path / "best").exists()


def test_a_diverged_model_is_nan_in_each_cell_and_wrong_arguments_are_still_refused(tmp_path, remembers):
    remembers.ema_denoiser.scale.data.fill_(math.nan)
    values = validated(tmp_path, remembers, nfes=[2, 3])
    assert math.isnan(values["fid/er_sde/nfe2"] + values["fid/er_sde/nfe3"])
    assert values["fid/real"] > 0

    class Refuses(Sampler):
        def __call__(self, *given):
            raise ValueError("order 9 is not known")

    with pytest.raises(ValueError, match="order 9"):
        validated(tmp_path, remembers, samplers={"refuses": Refuses()})


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_the_network_works_in_the_trainers_precision_and_nothing_else_does(tmp_path, remembers, capsys, precision):
    model, dtypes, flags = remembers.ema_denoiser, set(), set()

    def note(module, given):
        flags.add((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        dtypes.add((given[0].dtype, torch.get_default_dtype(), torch.mm(torch.eye(2), torch.eye(2)).dtype))

    model.register_forward_pre_hook(note)
    features, of_features = Means(), set()
    features.register_forward_hook(lambda module, given, found: of_features.add(found.dtype))
    trainer = trainer_with(tmp_path, make(features=features, nearest_images=0), precision=precision)
    trainer.fit(remembers, datamodule=Digits())
    half = precision.startswith("bf16")
    assert dtypes == {(torch.float32, torch.float32, torch.bfloat16 if half else torch.float32)}
    assert flags == {(False, False)}
    assert of_features == {torch.float32}
    assert f"sampled in {'bf16' if half else 'fp32'}" in capsys.readouterr().out


def test_nearest_images_can_be_left_out(tmp_path, remembers, monkeypatch, capsys):
    monkeypatch.setattr("ersde_lit.callbacks.fid_measure.nearest_distances", None)
    values = validated(tmp_path, remembers, features=Means(), nearest_images=0)
    assert set(values) == {"val/loss", "fid/real", "fid/er_sde/nfe3"}
    assert "nearest" not in capsys.readouterr().out


def test_sizes_are_said_and_a_reference_of_others_is_warned_of(tmp_path, remembers, capsys):
    for size in (8, 16):
        pictures = np.random.default_rng(0).integers(0, 256, (20, size, size), np.uint8)
        (tmp_path / f"of{size}").mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / f"of{size}" / f"{number}.png")
    given = {"features": Means(), "nearest_images": 0}
    with pytest.warns(UserWarning, match="images are 8x8, 1 channel, and those of the reference 16x16, 1 channel"):
        validated(tmp_path, remembers, reference=str(tmp_path / "of16"), **given)
    said = capsys.readouterr().out
    assert "of16 of 16x16, 1 channel" in said
    assert "60 samples to " in said
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*those of the reference.*")
        validated(tmp_path, remembers, reference=str(tmp_path / "of8"), **given)


def test_refuses_seeds_that_there_are_not():
    with pytest.raises(ValueError, match="first_seed must be at least 0, not -1"):
        make(first_seed=-1)


@pytest.mark.parametrize("name", ["num_samples", "batch_size", "every_n_validations", "columns"])
def test_refuses_counts_of_nothing(name):
    with pytest.raises(ValueError, match=f"{name} must be at least [12], not 0"):
        make(**{name: 0})


@pytest.mark.parametrize("name", ["samplers", "nfes"])
def test_refuses_an_empty_grid(name):
    with pytest.raises(ValueError, match="at least one sampler, one NFE"):
        make(**{name: []})


def test_other_data_are_measured_anew(tmp_path, remembers):
    few, trainer = Digits(val_size=40), trainer_with(tmp_path, make())
    trainer.validate(remembers, datamodule=Digits(), verbose=False)
    trainer.validate(remembers, datamodule=few, verbose=False)
    alone = trainer_with(tmp_path, make())
    alone.validate(remembers, datamodule=Digits(val_size=40), verbose=False)
    assert trainer.callback_metrics["fid/real"] == alone.callback_metrics["fid/real"]
    assert trainer.callback_metrics["nearest/real"] == alone.callback_metrics["nearest/real"]


def test_needs_real_images(tmp_path, remembers):
    class Other(LightningDataModule):
        def val_dataloader(self):
            return Digits().val_dataloader()

    with pytest.raises(ValueError, match="give the trainer an ImageDataModule"):
        trainer_with(tmp_path, make()).validate(remembers, datamodule=Other())


class Means(Features):
    """Six numbers of an image of any size: fast, and without weights."""

    num_features = 6

    def forward(self, images):
        x = images.float() / 255
        quarters = [q.mean(dim=(1, 2, 3)) for half in x.chunk(2, 2) for q in half.chunk(2, 3)]
        return torch.stack([*quarters, x.var(dim=(1, 2, 3)), x.amax(dim=(1, 2, 3))], 1)


def test_features_metrics_and_reference_are_those_of_scores(tmp_path, remembers):
    remembers.ema_denoiser.x0 *= 0.8
    metrics, data = ("fid", "kid", "precision", "recall"), Digits()
    values = validated(tmp_path, remembers, features=Means(), metrics=metrics)
    scores = Scores(Means(), reference_of(data, Means()), metrics)
    for block in generate(remembers.ema_denoiser, ER_SDE, range(60), 3):
        scores.update(quantise(block.images))
    expected = {f"{name}/er_sde/nfe3": value for name, value in scores.compute().items()}
    scores.reset()
    scores.update(data.held_out(60))
    expected |= {f"{name}/real": value for name, value in scores.compute().items()}
    assert {key: values[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    assert set(values) == {*expected, "nearest/real", "nearest/er_sde/nfe3", "val/loss"}


def test_never_sees_raw_weights_whatever_the_metric(tmp_path, remembers):
    metrics = ("fid", "kid", "precision", "recall")
    averaged = validated(tmp_path, remembers, features=Means(), metrics=metrics)
    remembers.denoiser.x0.fill_(torch.nan)  # whoever touches the raw weights fails
    assert validated(tmp_path, remembers, features=Means(), metrics=metrics) == averaged
    assert averaged["precision/er_sde/nfe3"] == 1  # copies of training images


class Unknown(LightningDataModule):
    """Batches of which nobody says that they are images."""

    def loader(self):
        return Digits().val_dataloader()

    train_dataloader = val_dataloader = loader


def test_a_reference_file_serves_where_the_data_are_unknown(tmp_path, remembers):
    data = Digits()
    write_reference(reference_of(data, Means()), tmp_path / "digits.npz")
    callback = make(features=Means(), reference=str(tmp_path / "digits.npz"))
    trainer = trainer_with(tmp_path, callback)
    trainer.validate(remembers, datamodule=Unknown(), verbose=False)
    values = {key: value.item() for key, value in trainer.callback_metrics.items()}
    assert set(values) == {"fid/er_sde/nfe3", "val/loss"}
    with_data = validated(tmp_path, remembers, features=Means())
    assert values["fid/er_sde/nfe3"] == pytest.approx(with_data["fid/er_sde/nfe3"], rel=1e-6)


def test_no_cell_is_begun_when_time_is_up(tmp_path, remembers, capsys):
    values = validated(tmp_path, remembers, nfes=[2, 3], features=Means(), max_seconds=1e-9)
    assert {key for key in values if key.startswith("fid")} == {"fid/real", "fid/er_sde/nfe2"}
    assert "not begun within 1e-09 seconds: er_sde/nfe3" in capsys.readouterr().out
    values = validated(tmp_path, remembers, nfes=[2, 3], features=Means(), max_seconds=1000)
    assert {key for key in values if key.startswith("fid")} == {"fid/real", "fid/er_sde/nfe2", "fid/er_sde/nfe3"}


def test_csv_and_wandb_get_values_and_pictures(tmp_path, remembers, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = WandbLogger(save_dir=tmp_path, offline=True)
    loggers = [wandb, CSVLogger(tmp_path, name="", version="csv")]
    trainer = trainer_with(tmp_path, make(), max_epochs=2, logger=loggers)
    trainer.fit(remembers, datamodule=Digits())
    value = trainer.callback_metrics["fid/er_sde/nfe3"].item()
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["fid/er_sde/nfe3"]]
    assert [int(row["step"]) for row in rows] == [1, 3]
    assert float(rows[-1]["fid/er_sde/nfe3"]) == pytest.approx(value)
    assert wandb.experiment.summary["fid/er_sde/nfe3"] == pytest.approx(value)
    wandb.experiment.finish()
    logged = sorted(tmp_path.glob("wandb/offline-run-*/files/media/images/samples/er_sde/nfe3_*.png"))
    kept = sorted((tmp_path / "samples").iterdir())
    assert len(logged) == len(kept) == 2
    for one, other in zip(logged, kept, strict=True):
        assert np.array_equal(np.array(Image.open(one).convert("L")), np.array(Image.open(other)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metrics": ()}, "one metric"),
        ({"max_seconds": 0}, "max_seconds must be above 0, not 0"),
    ],
)
def test_refuses_what_measures_nothing(given, message):
    with pytest.raises(ValueError, match=message):
        make(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metrics": ("fidd",)}, "no metric named 'fidd'"),
        ({"metrics": ("is",)}, "Inception Score needs class probabilities"),
        ({"reference": "absent.npz"}, "absent.npz"),
        ({"weights": "absent.pth"}, "weights are Inception's"),
        ({"features": "inception", "weights": "absent.pth"}, "absent.pth cannot be read"),
        ({"features": "efficientnet", "weights": "absent.pth"}, "absent.pth cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(tmp_path, remembers, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        trainer_with(tmp_path, make(**{"features": Means(), **given})).fit(remembers, datamodule=Digits())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "samples").exists()


def test_a_classifier_is_refused_in_one_line(tmp_path):
    classifier = NoisyClassifier(
        ClassifierEncoder((1, 8, 8), 10, width=8, multipliers=(1,), blocks=1, attention=(), head_width=8)
    )
    with pytest.raises(UserError, match="NoisyClassifier has no denoiser"):
        trainer_with(tmp_path, make()).fit(classifier, datamodule=Digits())


def test_a_file_of_tables_is_a_sampler_whose_nfes_are_checked_at_once(tmp_path, remembers):
    path = str(tmp_path / "x.tables")
    write_tables(path, SavedTables({3: ER_SDE.solver.tableau(ER_SDE.grid(3))}))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FIDCallback, "fid")
    of_yaml = {"mine": {"class_path": "ersde_lit.solvers.learned", "init_args": {"path": path}}}
    config = parser.parse_string(parser.dump(parser.parse_object({"fid": {"nfes": [3], "samplers": of_yaml}})))
    samplers = parser.instantiate(config).fid.samplers
    values = validated(tmp_path, remembers, samplers={"er_sde": ER_SDE, **samplers})
    assert values["fid/mine/nfe3"] == values["fid/er_sde/nfe3"]
    with pytest.raises(UserError, match="cannot sample mine at NFE 4: there is no table of 4 calls, only of 3"):
        trainer_with(tmp_path, make(samplers=samplers, nfes=[3, 4])).fit(remembers, datamodule=Digits())
