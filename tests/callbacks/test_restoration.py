import csv
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from image_sets import pixels, png, write_folder
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from ranks import run_on_ranks
from tiny import Larger, Pictures, network, restores, trainer
from torchmetrics.functional.image import structural_similarity_index_measure

from ersde_lit.callbacks import FIDCallback, RestorationCallback, restoration
from ersde_lit.cli import main
from ersde_lit.data import ImagePairs
from ersde_lit.denoisers import EDA, BiasField, FieldNoise, PairNoise
from ersde_lit.errors import UserError
from ersde_lit.metrics.fidelity import fidelity
from ersde_lit.networks import ClassifierEncoder
from ersde_lit.sampling.images import quantise
from ersde_lit.sampling.restoration import RESTORER
from ersde_lit.solvers import DDIM, ERSDE, Heun, SavedTables, TableSampler, default
from ersde_lit.training import DiffusionModule, NoisyClassifier

EULER = TableSampler(DDIM())
STOCHASTIC = TableSampler(ERSDE(order=2))


def validated(tmp_path, model, data=None, precision="32-true", **given):
    callback = RestorationCallback(**{"nfes": [2], "num_images": 12, "batch_size": 5, **given})
    runner = trainer(tmp_path, callbacks=[callback], precision=precision)
    runner.validate(model, datamodule=data or Larger(), verbose=False)
    return {key: value.item() for key, value in runner.callback_metrics.items() if key != "val/loss"}


def fitted(tmp_path, model, *callbacks, **given):
    short = {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 1}
    save = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    runner = trainer(tmp_path, callbacks=[*callbacks], **short | {"enable_checkpointing": save} | given)
    runner.fit(model, datamodule=Larger(batch_size=8))
    return runner


def by_hand(images, clean):
    """PSNR and SSIM, image by image."""
    images = images.clip(-1, 1)
    psnr = -10 * ((images - clean) / 2).square().flatten(1).mean(1).log10()
    grey = [((one + 1) / 2).unsqueeze(1) for one in (images, clean)]
    ssim = [structural_similarity_index_measure(*pair, data_range=1.0) for pair in zip(*grey, strict=True)]
    return psnr.mean().item(), torch.stack(ssim).mean().item()


@pytest.mark.parametrize("law", [FieldNoise(std=0.5), FieldNoise(eta=2.0), BiasField()])
def test_logs_what_degrading_and_restoring_by_hand_gives(tmp_path, law):
    model = restores(law)
    expected, seeds = {}, range(7, 19)
    clean = Larger().split("val").images[:12] / 127.5 - 1
    degraded = law.decode(law.encode(clean) + law.draw(seeds, law.encode(clean))).clip(-1, 1)
    cells = {("euler", 1): EULER, ("euler", 3): EULER, ("second", 1): RESTORER, ("second", 3): RESTORER}
    if isinstance(law, FieldNoise):
        cells |= {("noisy", 1): STOCHASTIC, ("noisy", 3): STOCHASTIC}
    restored = {f"{name}/nfe{nfe}": model.restore(degraded, s, nfe, seeds) for (name, nfe), s in cells.items()}
    for cell, images in {"degraded": degraded, **restored}.items():
        expected[f"psnr/{cell}"], expected[f"ssim/{cell}"] = by_hand(images, clean)
    samplers = {name: sampler for (name, _), sampler in cells.items()}
    for weight in model.denoiser.parameters():
        weight.data.fill_(math.nan)  # raw weights are not looked at
    values = validated(tmp_path, model, samplers=samplers, nfes=[1, 3], first_seed=7)
    assert values == pytest.approx(expected, rel=1e-4)
    assert len({round(value, 3) for key, value in values.items() if key.startswith("psnr")}) > len(cells) // 2


def test_the_default_is_the_restorer_of_no_name(tmp_path):
    model = restores(FieldNoise())
    named = validated(tmp_path, model, samplers={"restorer": RESTORER})
    assert validated(tmp_path, model) == named
    assert {*named} == {f"{metric}/{cell}" for metric in ("psnr", "ssim") for cell in ("degraded", "restorer/nfe2")}


def test_degraded_images_of_pairs_are_those_of_the_data(tmp_path):
    names, clean = [f"{k:02d}.png" for k in range(9)], pixels(9, size=20, channels=1)
    write_folder(tmp_path / "clean", {name: png(image) for name, image in zip(names, clean, strict=True)})
    write_folder(tmp_path / "dark", {name: png(image // 2) for name, image in zip(names, clean, strict=True)})
    data = ImagePairs(str(tmp_path / "dark"), str(tmp_path / "clean"), crop=16, val_size=8)
    (batch,) = data.val_dataloader()
    clean, _, degraded = batch
    model = restores(PairNoise())
    values = validated(tmp_path, model, data)
    assert (values["psnr/degraded"], values["ssim/degraded"]) == pytest.approx(by_hand(degraded, clean), rel=1e-5)
    restored = by_hand(model.restore(degraded, nfe=2), clean)
    assert (values["psnr/restorer/nfe2"], values["ssim/restorer/nfe2"]) == pytest.approx(restored, rel=1e-4)
    with_field = validated(tmp_path, restores(FieldNoise()), data)
    assert with_field["psnr/degraded"] == values["psnr/degraded"]  # nothing is added to what is degraded already


def test_all_held_out_images_are_taken_where_there_are_fewer(tmp_path, capsys):
    values = validated(tmp_path, restores(FieldNoise()), num_images=1000, batch_size=9)
    assert values == pytest.approx(validated(tmp_path, restores(FieldNoise()), num_images=44, batch_size=44), rel=1e-4)
    assert "PSNR in dB (SSIM) of 44 held-out images, restored in fp32" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_the_network_alone_works_in_the_trainers_precision(tmp_path, precision, capsys):
    model, products = restores(FieldNoise()), set()
    whole = validated(tmp_path, model)
    model.ema_denoiser.register_forward_pre_hook(
        lambda _, given: products.add((given[0].dtype, torch.mm(torch.eye(2), torch.eye(2)).dtype))
    )
    half = validated(tmp_path, model, precision=precision)
    assert (torch.float32, torch.bfloat16) in products
    assert half["psnr/degraded"] == whole["psnr/degraded"]  # neither the field nor the metric is rounded
    assert half["ssim/degraded"] == whole["ssim/degraded"]
    assert half["psnr/restorer/nfe2"] != whole["psnr/restorer/nfe2"]
    assert "restored in bf16" in capsys.readouterr().out


def test_ssim_is_left_out_of_images_below_its_window(tmp_path):
    class Small(Pictures):
        image_shape = (1, 10, 12)

    model = DiffusionModule(network(image_shape=(1, 10, 12), num_classes=0), EDA(), "eda", "eda", noise=FieldNoise())
    assert {*validated(tmp_path, model, Small())} == {"psnr/degraded", "psnr/restorer/nfe2"}
    black = -torch.ones(3, 1, 11, 11)
    assert fidelity(black, black)["ssim"].tolist() == [1, 1, 1]
    assert fidelity(black, black)["psnr"].tolist() == [100, 100, 100]  # rather than infinite


def test_a_fit_logs_pictures_and_values_at_the_same_steps_and_can_be_monitored(tmp_path):
    model = restores(FieldNoise())
    watch = RestorationCallback(nfes=[1, 3, 2], num_images=12, batch_size=6, columns=5)
    assert (watch.monitor, watch.mode) == ("psnr/restorer/nfe3", "max")
    assert RestorationCallback({"b": EULER, "a": EULER}).monitor == "psnr/b/nfe5"
    best = ModelCheckpoint(tmp_path / "best", monitor=watch.monitor, mode=watch.mode)
    fitted(tmp_path, model, watch, best, max_epochs=3, logger=CSVLogger(tmp_path, "", "logs"), log_every_n_steps=1)
    with (tmp_path / "logs/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row[watch.monitor]]
    assert [row["step"] for row in rows] == ["1", "3", "5"]
    psnr = [float(row[watch.monitor]) for row in rows]
    assert len({*psnr}) == 3
    assert best.best_model_score.item() == pytest.approx(max(psnr), rel=1e-6)
    assert len({row["psnr/degraded"] for row in rows}) == 1  # the same degraded images at each

    names = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert names == [f"restorer-nfe{nfe}-step{step:07d}.png" for nfe in (1, 2, 3) for step in (1, 3, 5)]
    pixels = np.array(Image.open(tmp_path / "samples" / names[-1])).reshape(3, 34, 5, 34)[:, 1:33:2, :, 1:33:2]
    degraded, restored, clean = torch.from_numpy(pixels).permute(0, 2, 1, 3).unsqueeze(2)
    x0 = Larger().split("val").images[:5]
    assert torch.equal(clean, x0)
    law = FieldNoise()
    assert torch.equal(degraded, quantise(x0 / 127.5 - 1 + law.draw(range(5), x0 / 127.5 - 1)))
    assert (restored.int() - quantise(model.restore(degraded / 127.5 - 1, nfe=3)).int()).abs().max() <= 2


def test_every_nth_and_the_last_validation_and_nothing_of_trials(tmp_path):
    watch = RestorationCallback(nfes=[1], num_images=2, every_n_validations=3)
    fitted(tmp_path, restores(FieldNoise()), watch, max_epochs=6)
    steps = sorted(int(p.stem[-7:]) for p in (tmp_path / "samples").iterdir())
    assert [(step + 1) // 2 for step in steps] == [1, 4, 6]
    fresh = RestorationCallback(nfes=[1], num_images=2)
    fresh.load_state_dict(watch.state_dict())
    assert fresh._validations == 6
    assert fresh.state_key == watch.state_key != RestorationCallback(nfes=[1], num_images=3).state_key

    runner = trainer(tmp_path / "trial", callbacks=[RestorationCallback()], fast_dev_run=True)
    runner.fit(restores(FieldNoise()), datamodule=Larger(batch_size=8))
    assert not [key for key in runner.callback_metrics if "psnr" in key]


@pytest.mark.parametrize("bad", [0, 11])
def test_one_bad_image_makes_its_cell_nan_and_training_goes_on(tmp_path, monkeypatch, capsys, bad):
    def fails(denoiser, sampler, degraded, nfe, seeds):
        if bad in seeds and sampler is EULER:
            raise FloatingPointError("the denoiser's output is not finite")
        return right(denoiser, sampler, degraded, nfe, seeds)

    right = restoration.restore
    monkeypatch.setattr(restoration, "restore", fails)
    watch = RestorationCallback({"bad": EULER, "good": STOCHASTIC}, [2], num_images=12, batch_size=5)
    best = ModelCheckpoint(tmp_path / "best", monitor=watch.monitor, mode=watch.mode)
    with pytest.warns(UserWarning, match="psnr/bad/nfe2 is logged as NaN: a restored image is not finite"):
        runner = fitted(tmp_path, restores(FieldNoise()), watch, best)
    assert runner.global_step == 4
    values = runner.callback_metrics
    assert values["psnr/bad/nfe2"].isnan()
    assert values["ssim/bad/nfe2"].isnan()
    assert values["psnr/good/nfe2"] > 0
    assert len([*(tmp_path / "samples").glob("bad*")]) == (2 if bad else 0)  # of the first block
    assert "nan (nan)" in capsys.readouterr().out


def test_a_bar_shows_the_images_while_they_are_restored(tmp_path):
    shown = []

    class Bar(RichProgressBar):
        def on_validation_end(self, runner, module):
            shown.extend((task.completed, task.total) for task in self.progress.tasks if "PSNR" in task.description)
            super().on_validation_end(runner, module)

    watch = RestorationCallback(nfes=[1, 2], num_images=12, batch_size=5)
    runner = trainer(tmp_path, callbacks=[watch, Bar()], enable_progress_bar=True)
    runner.validate(restores(FieldNoise()), datamodule=Larger(), verbose=False)
    assert shown == [(24, 24)]


def test_world_size_changes_nothing(cache):
    script = Path(__file__).with_name("restoration_on_ranks.py")
    done = run_on_ranks(script, "evaluate", [2])
    assert done.codes == [0, 0], done.said
    one = runpy.run_path(str(script))["evaluate"](1)
    assert len(one) == 10
    assert done.values[0] == pytest.approx(one, rel=1e-6)  # float32 in the log


CLASSIFIER = ClassifierEncoder((1, 16, 16), 3, width=8, multipliers=(1,), blocks=1, attention=(), head_width=8)
TABLES = TableSampler(SavedTables({3: EULER.table(restores(FieldNoise()).ema_denoiser, 3)}))


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (DiffusionModule(network(image_shape=(1, 16, 16))), {}, "this DiffusionModule has none: take FIDCallback"),
        (NoisyClassifier(CLASSIFIER), {}, "this NoisyClassifier has none"),
        (restores(BiasField()), {"samplers": {"s": STOCHASTIC}}, "with s at NFE 2: the law of BiasField depends on x0"),
        (restores(FieldNoise()), {"samplers": {"h": Heun()}}, "with h at NFE 2: Heun has no table"),
        (restores(FieldNoise()), {"samplers": {"t": TABLES}, "nfes": [3, 4]}, "with t at NFE 4: .*no table of 4"),
        (restores(FieldNoise()), {"nfes": [5, 0]}, "with restorer at NFE 0: "),
    ],
)
def test_what_cannot_be_restored_is_refused_before_training(tmp_path, model, given, message):
    with pytest.raises(UserError, match=message) as caught:
        fitted(tmp_path, model, RestorationCallback(**{"nfes": [2], **given}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "samples").exists()


def test_fid_is_refused_where_images_are_restored(tmp_path):
    with pytest.raises(UserError, match="the model restores images: take RestorationCallback"):
        fitted(tmp_path, restores(FieldNoise()), FIDCallback({"default": default(3)}))


def test_needs_held_out_images(tmp_path):
    with pytest.raises(UserError, match="give the trainer an ImageDataModule"):
        trainer(tmp_path, callbacks=[RestorationCallback()]).validate(restores(FieldNoise()), Larger().val_dataloader())


@pytest.mark.parametrize("name", ["num_images", "batch_size", "every_n_validations", "columns"])
def test_refuses_counts_of_nothing(name):
    with pytest.raises(UserError, match=f"RestorationCallback: {name} must be at least 1, not 0"):
        RestorationCallback(**{name: 0})


@pytest.mark.parametrize("given", [{"samplers": {}}, {"nfes": []}, {"first_seed": -1}])
def test_refuses_an_empty_grid_and_seeds_below_0(given):
    with pytest.raises(UserError, match=r"at least one sampler and one NFE|first_seed must be at least 0, not -1"):
        RestorationCallback(**given)


def test_a_run_from_yaml_keeps_the_checkpoint_of_the_best_psnr(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    solver = {"class_path": "ersde_lit.solvers.DDIM"}
    ddim = {"class_path": "ersde_lit.solvers.TableSampler", "init_args": {"solver": solver}}
    watch = {"samplers": {"euler": ddim}, "nfes": [1, 2], "num_images": 4}
    small = {"width": 8, "multipliers": [1], "blocks": 1, "attention": [], "head_width": 8}
    configuration = {
        "model": {
            "network": {"class_path": "ersde_lit.networks.UNet", "init_args": small},
            "process": {"class_path": "ersde_lit.denoisers.EDA"},
            "preconditioning": "eda",
            "prediction": "eda",
            "noise": {"class_path": "ersde_lit.denoisers.BiasField"},
            "label_dropout": 1.0,  # `Larger` has classes
        },
        "data": {"class_path": "tiny.Larger", "init_args": {"batch_size": 8}},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "ersde_lit.callbacks.RestorationCallback", "init_args": watch}],
        },
    }
    Path("mine.yaml").write_text(yaml.safe_dump(configuration))
    assert main(["fit", "--config", "mine.yaml", "--trainer.fast_dev_run=true"]) == 0
    assert not Path("runs").exists()
    capsys.readouterr()
    assert main(["fit", "--config", "mine.yaml"]) == 0
    out = capsys.readouterr().out
    assert "PSNR in dB (SSIM) of 4 held-out images" in out
    assert "best        runs/mine/checkpoints/best.ckpt (psnr/euler/nfe2 " in out
    assert len([*Path("runs/mine/samples").glob("euler-nfe*.png")]) == 4
    kept = torch.load("runs/mine/checkpoints/best.ckpt", weights_only=True)["callbacks"]
    (checkpoint,) = (state for key, state in kept.items() if key.startswith("ModelCheckpoint") and "euler" in key)
    assert checkpoint["monitor"] == "psnr/euler/nfe2"
    assert "'mode': 'max'" in str([*kept])
