import os
import shlex
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from quick_start import CONFIGS, SMALL_GRID, fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ersde_lit.cli import main
from ersde_lit.cli.prediction_writer import PredictionWriter
from ersde_lit.data import Digits
from ersde_lit.files import locked
from ersde_lit.networks import UNet
from ersde_lit.training import DiffusionModule, load, load_classifier


def test_a_run_leaves_its_configuration_checkpoint_curves_and_pictures(inside) -> None:
    run = inside / "runs" / "digits"
    assert {"config.yaml", "checkpoints", "logs", "samples", "finished"} <= {p.name for p in run.iterdir()}
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert len(list((run / "samples").glob("er_sde-nfe3-*.png"))) == 2
    events = EventAccumulator(str(run / "logs")).Reload()
    fids = [event.value for event in events.Scalars("fid/er_sde/nfe3")]
    losses = [event.value for event in events.Scalars("val/loss")]
    assert len(fids) == len(losses) == 2
    assert losses[1] < losses[0]
    assert {"fid/real", "nearest/real", "fid/er_sde/nfe2"} <= set(events.Tags()["scalars"])
    assert "samples/er_sde/nfe3" in events.Tags()["images"]


def test_the_checkpoint_is_loadable_and_holds_both_weights(inside) -> None:
    model = load("runs/digits/checkpoints/last.ckpt")
    assert model.images_seen == 2 * 12 * 128
    assert not torch.equal(model.denoiser.network.enter.weight, model.ema_denoiser.network.enter.weight)


def test_the_same_command_says_that_it_is_finished(inside, capsys) -> None:
    before = (inside / "runs/digits/checkpoints/last.ckpt").read_bytes()
    assert main(fit(*SMALL_GRID)) == 0
    out = capsys.readouterr().out
    assert "is finished" in out
    assert "sample --ckpt_path runs/digits/checkpoints/last.ckpt" in out
    assert (inside / "runs/digits/checkpoints/last.ckpt").read_bytes() == before


def test_a_changed_configuration_is_refused(inside, capsys) -> None:
    assert main(fit(*SMALL_GRID, "--model.sigma_data=0.6")) == 2
    error = capsys.readouterr().err
    assert "model.sigma_data" in error
    assert "--run NAME" in error


@pytest.mark.parametrize("wrong", ["num_clases", "init_arg"])
def test_a_misspelt_name_in_a_file_is_named_with_its_place(wrong, inside, tmp_path, capsys) -> None:
    text = (
        (CONFIGS / "digits.yaml")
        .read_text()
        .replace({"num_clases": "num_classes", "init_arg": "init_args"}[wrong], wrong)
    )
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["fit", "--config", str(tmp_path / "mine.yaml")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'mine.yaml'}, model.network: there is no {wrong}; did you mean" in error
    assert error.count("\n") == 1


def test_sizes_that_a_configuration_leaves_out_are_the_datas(inside, capsys, tmp_path) -> None:
    lines = (CONFIGS / "digits.yaml").read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if "image_shape" not in line and "num_classes" not in line)
    (tmp_path / "sizeless.yaml").write_text(text)
    assert main(["fit", "--config", str(tmp_path / "sizeless.yaml"), *fit()[3:], "--print_config"]) == 0
    network = yaml.safe_load(capsys.readouterr().out)["model"]["network"]["init_args"]
    assert (network["image_shape"], network["num_classes"], network["width"]) == ([1, 8, 8], 10, 8)
    given = ["--model.network.init_args.num_classes=0"]
    assert main(["fit", "--config", str(tmp_path / "sizeless.yaml"), *given, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["network"]["init_args"]["num_classes"] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {network: {class_path: ersde_lit.networks.UNet, init_args: }}", "--model.network"),
        ("model: {network: {class_path: ersde_lit.networks.UNet, init_args: [[1]]}}", "--model.network"),
        ("model: {network: [1]}", "network"),
        ("3: 4", "top level: there is no 3, only model"),
    ],
)
def test_yaml_of_another_structure_gets_one_line(inside, capsys, tmp_path, text: str, words: str) -> None:
    (tmp_path / "odd.yaml").write_text(f"{text}\ndata: ersde_lit.data.Digits\n")
    assert main(["fit", "--config", str(tmp_path / "odd.yaml"), "--run=odd"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_sizes_of_a_configuration_stay_where_the_class_is_named_again(inside, capsys, tmp_path) -> None:
    text = (CONFIGS / "digits.yaml").read_text().replace("num_classes: 10", "num_classes: 3")
    (tmp_path / "three.yaml").write_text(text)
    again = ["--config", str(tmp_path / "three.yaml"), "--model.network=ersde_lit.networks.UNet"]
    assert main(["fit", *again, "--print_config"]) == 0
    network = yaml.safe_load(capsys.readouterr().out)["model"]["network"]["init_args"]
    assert (network["image_shape"], network["num_classes"]) == ([1, 8, 8], 3)


def test_a_second_process_does_not_train_in_the_same_folder(inside, capsys) -> None:
    (inside / "runs/busy").mkdir(parents=True)
    with locked(inside / "runs/busy/.lock", "held"):
        assert main(fit("--trainer.callbacks=null", "--run=busy")) == 2
    assert "another process is training in runs/busy" in capsys.readouterr().err
    assert not (inside / "runs/busy/config.yaml").exists()
    assert main(fit("--trainer.callbacks=null", "--run=busy", "--trainer.max_steps=1")) == 0
    assert not (inside / "runs/busy/.lock").exists()


def test_a_run_is_extended_and_watched_otherwise_with_a_line(inside, capsys) -> None:
    constant = ("--trainer.callbacks=null", "--run=longer", "--model.optimizer.decay=0")
    assert main(fit(*constant)) == 0
    assert main(fit(*constant, "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=3")) == 0
    out = capsys.readouterr().out
    assert "runs/longer goes on with " in out
    assert "trainer.max_epochs 3 (it was 2)" in out
    assert load("runs/longer/checkpoints/last.ckpt").images_seen == 3 * 12 * 128
    assert main(fit(*constant, "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=1")) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out


def test_an_extension_that_would_change_what_was_trained_is_refused_and_not_kept(inside, capsys) -> None:
    assert main(fit("--trainer.callbacks=null", "--run=falling", "--trainer.limit_val_batches=0")) == 0
    kept = (inside / "runs/falling/config.yaml").read_text()
    assert main(fit("--trainer.callbacks=null", "--run=falling", "--trainer.max_epochs=4")) == 2
    assert "--init_from" in capsys.readouterr().err
    assert (inside / "runs/falling/config.yaml").read_text() == kept
    assert (inside / "runs/falling/finished").exists()


@pytest.mark.parametrize("text", ["", "model: [", None])
def test_a_run_whose_configuration_is_damaged_is_refused(inside, capsys, text: str | None) -> None:
    assert main(fit("--trainer.callbacks=null", "--run=damaged", "--trainer.max_steps=1")) == 0
    config = inside / "runs/damaged/config.yaml"
    kept = config.read_text()
    config.unlink() if text is None else config.write_text(text)
    assert main(fit("--trainer.callbacks=null", "--run=damaged", "--trainer.max_steps=1")) == 2
    error = capsys.readouterr().err
    assert "runs/damaged/config.yaml cannot be read: put it back" in error
    assert error.count("ersde_lit: fit: ") == 1
    config.write_text(kept)


def test_fewer_epochs_than_trained_are_refused_with_the_way_out(inside, capsys) -> None:
    options = ["--trainer.max_epochs=1", "--model.optimizer.decay=0"]
    assert main(fit("--trainer.callbacks=null", "--run=longer", *options)) == 2
    assert "2 epochs have been trained, more than max_epochs 1" in capsys.readouterr().err.replace(
        "3 epochs", "2 epochs"
    )
    ckpt = "--ckpt_path=runs/digits/checkpoints/last.ckpt"
    assert main(fit("--trainer.callbacks=null", "--run=shorter", ckpt, *options)) == 2
    assert "--init_from" in capsys.readouterr().err


def test_fine_tuning_starts_from_averaged_weights_of_a_checkpoint_or_an_export(inside, capsys) -> None:
    source = load("runs/digits/checkpoints/last.ckpt")
    assert main(["export", "runs/digits/checkpoints/last.ckpt", "--out=digits.safetensors"]) == 0
    for number, path in enumerate(("runs/digits/checkpoints/last.ckpt", "digits.safetensors")):
        options = [f"--init_from={path}", f"--run=tuned{number}", "--model.optimizer.lr=1e-12", "--trainer.max_steps=1"]
        assert main(fit("--trainer.callbacks=null", *options)) == 0
        tuned = load(f"runs/tuned{number}/checkpoints/last.ckpt")
        assert tuned.images_seen == 128
        for name, weight in tuned.denoiser.state_dict().items():
            torch.testing.assert_close(weight, source.ema_denoiser.state_dict()[name], rtol=0, atol=1e-9)
    other = ["--init_from=digits.safetensors", "--run=other", "--model.network.init_args.num_classes=0"]
    assert main(fit("--trainer.callbacks=null", *other)) == 2
    assert "network.num_classes is 10 there and 0 here; --init_skip embed_label" in capsys.readouterr().err
    assert main(fit("--trainer.callbacks=null", *other, "--init_skip=embed_label", "--trainer.max_steps=1")) == 0


def test_ctrl_c_names_the_command_that_goes_on(inside, capsys, monkeypatch) -> None:
    def stop(module: DiffusionModule, *args) -> None:
        if module.global_step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    command = fit("--trainer.callbacks=null", "--run=interrupted")
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "on_train_batch_end", stop)
        assert main(command) == 130
    out = capsys.readouterr().out
    assert "Ctrl-C: saved runs/interrupted/checkpoints/last.ckpt at step 7." in out
    assert f"To go on: python -m ersde_lit {shlex.join(command)}" in out


def test_the_best_checkpoint_by_fid_is_kept_and_named(inside, capsys) -> None:
    assert main(fit(*SMALL_GRID, "--run=best")) == 0
    assert "best        runs/best/checkpoints/best.ckpt (fid/er_sde/nfe3 " in capsys.readouterr().out
    load("runs/best/checkpoints/best.ckpt")


def test_help_begins_with_our_own_options_and_explains_each(capsys) -> None:
    assert main(["fit", "--help"]) == 0
    out = capsys.readouterr().out
    places = [
        out.index(option) for option in ("--init_from", "--model.network", "--data", "--checkpoint.", "--trainer.")
    ]
    assert places == sorted(places)
    assert "registry" not in out[: places[-1]]
    for option in ("--model.preconditioning", "--model.prediction", "--model.sigma_data", "--model.process"):
        explanation = out.partition(f"  {option} ")[2].partition("\n  --")[0]
        assert len(explanation.split("(", 1)[0].split()) > 4, option


def test_a_run_that_never_got_to_a_checkpoint_may_be_changed(inside) -> None:
    assert main(fit("--trainer.callbacks=null", "--run=fixed", "--model.label_dropout=2")) == 2
    assert main(fit("--trainer.callbacks=null", "--run=fixed", "--trainer.max_steps=1")) == 0


def test_a_run_that_died_goes_on_from_its_last_epoch(inside, capsys, monkeypatch) -> None:
    with monkeypatch.context() as patch:  # as if killed in the second of two epochs
        patch.setattr(DiffusionModule, "on_train_epoch_start", die_in_epoch_1)
        with pytest.raises(KeyError):
            main(fit("--trainer.callbacks=null", "--run=half"))
    assert not (inside / "runs/half/finished").exists()
    assert load("runs/half/checkpoints/last.ckpt").images_seen == 12 * 128
    assert main(fit("--trainer.callbacks=null", "--run=half")) == 0
    assert "Resuming runs/half" in capsys.readouterr().out
    assert (inside / "runs/half/finished").exists()
    assert [p.name for p in (inside / "runs/half/checkpoints").iterdir()] == ["last.ckpt"]
    assert load("runs/half/checkpoints/last.ckpt").images_seen == 2 * 12 * 128


def test_a_run_goes_on_whatever_shows_and_times_it(inside, capsys, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "on_train_epoch_start", die_in_epoch_1)
        with pytest.raises(KeyError):
            main(fit("--trainer.callbacks=null", "--run=shown"))
    shown = ["enable_progress_bar=true", "enable_model_summary=true", "log_every_n_steps=3", "profiler=simple",
             "logger=false", "max_time=00:01:00:00", "num_sanity_val_steps=0"]  # fmt: skip
    assert main(fit("--trainer.callbacks=null", "--run=shown", *(f"--trainer.{option}" for option in shown))) == 0
    assert "Resuming runs/shown" in capsys.readouterr().out
    assert_same_weights(load("runs/shown/checkpoints/last.ckpt"), load("runs/half/checkpoints/last.ckpt"))


CSV = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: logged, name: '', version: a}}"
WANDB = "{class_path: lightning.pytorch.loggers.WandbLogger, init_args: {save_dir: logged, offline: true}}"


@pytest.mark.parametrize(
    ("logger", "shown"),
    [
        ("null", ["tensorboard --logdir runs/shown1-4"]),
        ("false", []),
        (CSV, ["logged/a/metrics.csv"]),
        (f"[{WANDB}, {CSV}]", ["logged/wandb/offline-run-", "logged/a/metrics.csv"]),
    ],
    ids=["default", "none", "csv", "wandb and csv"],
)
def test_curves_are_where_they_are_said_to_be(inside, capsys, monkeypatch, logger, shown) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    (inside / "logged").mkdir(exist_ok=True)
    options = ["--trainer.callbacks=null", "--trainer.max_steps=1", "--trainer.log_every_n_steps=1"]
    wandb = pytest.importorskip("wandb") if "Wandb" in logger else None
    assert main(fit(*options, f"--trainer.logger={logger}", f"--run=shown{len(shown)}-{len(logger)}")) == 0
    if wandb is not None:
        wandb.finish()  # the next logger of this process would go on with its run
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("curves")]
    assert len(lines) == len(shown)
    for line, where in zip(lines, shown, strict=True):
        assert where in line
        if "tensorboard" not in where:
            assert Path(line.split()[-1]).exists()


@pytest.mark.parametrize("parts", [1, 8])  # of a step: the time may be up within one
def test_time_that_is_up_is_no_end(inside, capsys, monkeypatch, parts) -> None:
    run, accumulated = f"timed{parts}", f"--device_batch_size={128 // parts}"
    command = fit("--trainer.callbacks=null", f"--run={run}", accumulated, "--model.optimizer.warmup=100000")
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "on_train_batch_end", lambda *args: time.sleep(0.3 / parts))
        for _ in range(2):
            assert main([*command, "--trainer.max_time=00:00:00:01"]) == 0
            assert f"Time is up: to go on with runs/{run}" in capsys.readouterr().out
    images = load(f"runs/{run}/checkpoints/last.ckpt").images_seen
    assert images < 2 * 12 * 128
    assert images % 128 == 0
    assert main([*command, "--trainer.max_time=00:01:00:00"]) == 0
    assert (inside / f"runs/{run}/finished").exists()
    assert load(f"runs/{run}/checkpoints/last.ckpt").images_seen == 2 * 12 * 128


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(inside, capsys, monkeypatch) -> None:
    def spoil(module: DiffusionModule, *args) -> None:
        if module.global_step == 18:
            for weight in module.denoiser.parameters():
                weight.data.mul_(1e12)

    command = fit("--trainer.callbacks=null", "--run=spoilt")
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "on_train_batch_end", spoil)
        assert main(command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ersde_lit:")]
    assert "step 24" in line
    assert line.endswith("the last good checkpoint is runs/spoilt/checkpoints/last.ckpt")
    assert load("runs/spoilt/checkpoints/last.ckpt").images_seen == 12 * 128
    assert not (inside / "runs/spoilt/finished").exists()
    assert main(command) == 0
    assert "Resuming runs/spoilt" in capsys.readouterr().out
    assert_same_weights(load("runs/spoilt/checkpoints/last.ckpt"), load("runs/half/checkpoints/last.ckpt"))


def test_a_run_that_diverged_at_once_is_not_finished(inside, capsys) -> None:
    for _ in range(2):
        assert main(fit("--trainer.callbacks=null", "--run=lost", "--model.optimizer.lr=1e9")) == 2
        captured = capsys.readouterr()
        assert "there is no good checkpoint" in captured.err
        assert "finished" not in captured.out


@pytest.mark.parametrize("none", ["max_epochs=0", "max_steps=0", "limit_train_batches=0"])
def test_a_run_without_a_step_is_not_finished(inside, capsys, none) -> None:
    run = f"--run={none.partition('=')[0]}"
    assert main(fit("--trainer.callbacks=null", run, f"--trainer.{none}")) == 2
    captured = capsys.readouterr()
    assert "fit ended before its first step" in captured.err
    assert "checkpoint  " not in captured.out
    assert main(fit("--trainer.callbacks=null", run, "--trainer.max_steps=1")) == 0


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(inside, capsys, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "on_train_epoch_start", die_in_epoch_1)
        with pytest.raises(KeyError):
            main(fit("--trainer.callbacks=null", "--run=torn", "--checkpoint.steps=5"))
    last, previous = (inside / f"runs/torn/checkpoints/{name}.ckpt" for name in ("last", "previous"))
    assert load(last).images_seen == 12 * 128
    before = load(previous).images_seen
    assert 0 < before <= 12 * 128  # from before the validation
    damaged(last)
    assert main(fit("--trainer.callbacks=null", "--run=torn", "--checkpoint.steps=5")) == 0
    out = capsys.readouterr().out
    assert f"Warning: {last.relative_to(inside)} is damaged, and skipped.\n" in out
    assert f"Resuming runs/torn from {previous.relative_to(inside)}." in out
    assert_same_weights(load(last), load("runs/half/checkpoints/last.ckpt"))
    (inside / "runs/torn/finished").unlink()
    damaged(last)
    assert main(fit("--trainer.callbacks=null", "--run=torn", "--checkpoint.steps=5")) == 2
    assert "no checkpoint of runs/torn is whole" in capsys.readouterr().err


def assert_same_weights(one: DiffusionModule, other: DiffusionModule) -> None:
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_run_that_is_told_to_stop_saves_and_goes_on(inside, capsys, caplog, monkeypatch) -> None:
    def stop(module: DiffusionModule, *args) -> None:
        if module.global_step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "on_train_batch_end", stop)
        assert main(fit("--trainer.callbacks=null", "--run=stopped")) == 143
    assert "SIGTERM: saved runs/stopped/checkpoints/last.ckpt at step 7." in capsys.readouterr().out
    # other means to the same end
    assert (
        main(fit("--trainer.callbacks=null", "--run=stopped", "--device_batch_size=64", "--checkpoint.minutes=5")) == 0
    )
    assert "A step is 128 images: 1 device(s) x 2 accumulated batch(es) x 64 images." in caplog.text
    assert load("runs/stopped/checkpoints/last.ckpt").images_seen == 2 * 12 * 128


def die_in_epoch_1(module: DiffusionModule) -> None:
    if module.current_epoch == 1:
        raise KeyError("killed")


def test_fid_can_be_monitored_from_the_first_epoch(inside) -> None:
    best = """{class_path: lightning.pytorch.callbacks.ModelCheckpoint,
               init_args: {monitor: fid/er_sde/nfe2, filename: best, mode: min}}"""
    callbacks = ["--trainer.callbacks+=" + best]
    assert main(fit(*SMALL_GRID, *callbacks, "--run=monitored")) == 0
    assert list((inside / "runs/monitored").rglob("best.ckpt"))


def test_validate_and_test_take_the_checkpoint_of_the_run(inside, capsys) -> None:
    for command in ("validate", "test"):
        assert main([command, *fit(*SMALL_GRID)[1:]]) == 0
    assert "fid/er_sde/nfe3" in capsys.readouterr().out


def test_predictions_of_pairs_are_written(tmp_path) -> None:
    batch = torch.zeros(2, 1, 4, 4), torch.tensor([-1, -1]), torch.zeros(2, 1, 4, 4)
    writer = PredictionWriter(tmp_path / "predictions")
    writer.write_on_batch_end(SimpleNamespace(global_rank=0), None, torch.ones(2, 1, 4, 4), None, batch, 3, 0)
    with np.load(tmp_path / "predictions/00003-0.npz") as file:
        assert file["arr_0"].min() == 255
        assert file["arr_1"].tolist() == [-1, -1]


def test_predict_generates_the_test_data_anew(inside, capsys) -> None:
    assert main(["predict", *fit()[1:]]) == 0
    with np.load("runs/digits/predictions/00001-0.npz") as file:
        assert file["arr_0"].shape == (180 - 128, 8, 8, 1)
        assert torch.equal(torch.from_numpy(file["arr_1"]), Digits().split("test").labels[128:])
    assert main(["predict", *fit()[1:]]) == 2
    assert "move it away first" in capsys.readouterr().err


def test_the_network_can_be_compiled_and_channels_last(inside, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(UNet, "compile", lambda network: compiled.append(network))
    options = ["--compile=true", "--channels_last=true", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    assert main(fit("--trainer.callbacks=null", "--run=compiled", *options)) == 0
    (network,) = compiled
    assert network.enter.weight.is_contiguous(memory_format=torch.channels_last)
    assert load("runs/compiled/checkpoints/last.ckpt").images_seen == 128


def test_without_a_checkpoint_nothing_is_validated(inside, capsys) -> None:
    assert main(["validate", *fit("--run=absent")[1:]]) == 2
    assert "no checkpoint at runs/absent" in capsys.readouterr().err


def test_fast_dev_run_leaves_nothing(inside) -> None:
    assert main(fit("--run=trial", "--trainer.fast_dev_run=2")) == 0
    assert not (inside / "runs/trial").exists()


def test_a_network_by_its_bare_name_gets_its_sizes_from_the_data(inside, capsys) -> None:
    assert main(["fit", "--data", "Digits", "--model.network", "UNet", "--print_config"]) == 0
    network = yaml.safe_load(capsys.readouterr().out)["model"]["network"]["init_args"]
    assert (network["image_shape"], network["num_classes"]) == ([1, 8, 8], 10)


def test_a_missing_option_of_the_data_is_not_blamed_on_the_network(inside, capsys) -> None:
    pairs = ["--data", "ImagePairs", "--data.degraded", "here"]
    for options, name in ((pairs, "clean"), ([], "data")):
        assert main(["fit", *options, "--model.network", "UNet"]) == 2
        assert f"--data: the following arguments are required: {name}\n" in capsys.readouterr().err


def test_the_configuration_can_be_printed(inside, capsys) -> None:
    assert main(fit("--print_config")) == 0
    out = capsys.readouterr().out
    assert "class_path: ersde_lit.networks.UNet" in out
    assert "label_dropout: 0.0" in out


@pytest.mark.parametrize("name", ["digits_vp", "digits_ve", "fashion_mnist"])
def test_every_configuration_is_readable(name: str, capsys) -> None:
    assert main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), "--print_config"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.network.init_args.widht=8"], "command line, model.network: there is no widht; did you mean width?"),
        (
            ["--model.network=ersde_lit.networks.UNet", "--model.network.init_args.widht=8"],
            "command line, model.network: there is no widht; did you mean width?",
        ),
        (["--model.optimzer.lr=1e-3"], "command line, model: there is no optimzer; did you mean optimizer?"),
        (["--model.optimizer.ler=1e-3"], "command line, model.optimizer: there is no ler; did you mean lr?"),
        (["--data.batch_size=64", "--trainer.max_epochz=3"], "trainer: there is no max_epochz"),
        (["--trainer.max_epochz=3"], "command line, trainer: there is no max_epochz; did you mean max_epochs?"),
        (["--model.prediction=noise"], "prediction"),
        (["--model.preconditioning=vp"], "preconditioning 'vp' needs the process VP, got VE"),
        (["--model.label_dropout=2"], "label_dropout is a probability"),
        (["--model.network.init_args.width=12"], "multiple of 8"),
        (["--model.network.init_args.image_shape=[1,4,4]"], "images are (1, 8, 8), the network's (1, 4, 4)"),
        (["--data.batch_size=100000"], "batch_size 100000 exceeds"),
        (["--data.class_path=ersde_lit.data.Nothing"], "there is no ersde_lit.data.Nothing"),
        (
            ["--data", "ersde_lit.data.ImageArr"],
            "there is no ersde_lit.data.ImageArr; did you mean ersde_lit.data.Image",
        ),
        (["--config=absent.yaml"], "absent.yaml"),
        (["--trainer.devices=0"], "devices"),
        (["--optimizer=torch.optim.SGD", "--optimizer.lr=100"], "command line, top level: there is no optimizer"),
        (["--run=../../evil"], "--run '../../evil': a run is a folder in runs/; give it a plain name"),
        (["--run=a/b"], "give it a plain name"),
        (["--run=.."], "give it a plain name"),
        (["--run="], "give it a plain name"),
        (
            ["--device_batch_size=48"],
            "are not 3 equal batches of at most --device_batch_size 48: choose a divisor of 128",
        ),
        (["--device_batch_size=0"], "device_batch_size"),
        (["--device_batch_size=64", "--trainer.accumulate_grad_batches=2"], "not both"),
        (["--trainer.accumulate_grad_batches=3"], "128 cannot be shared by 1 device(s) x 3 accumulated batch(es)"),
        (["--checkpoint.minutes=0"], "must be positive"),
        (["--init_skip=embed_label"], "--init_from"),
        (["--trainer.strategy=fsdp"], "requires a GPU"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(inside, capsys, options: list[str], message: str) -> None:
    assert main(fit("--trainer.callbacks=null", "--run=bad", *options)) == 2
    error = capsys.readouterr().err
    assert message in error
    lines = [line for line in error.splitlines() if line.startswith("ersde_lit: ")]
    assert len(lines) == 1
    assert "Traceback" not in error
    assert not (inside / "runs/bad/finished").exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_data_set_that_is_not_there_gets_one_line(inside, capsys, command) -> None:
    ckpt = [] if command == "fit" else ["--ckpt_path=runs/digits/checkpoints/last.ckpt"]
    data = ["--data=ersde_lit.data.ImageArray", "--data.init_args.root=data/nothere"]
    config = ["--config", str(CONFIGS / "digits.yaml"), "--run=absent"]
    assert main([command, *config, *data, *ckpt]) == 2
    error = capsys.readouterr().err.removeprefix("Seed set to 0\n")
    assert error.startswith(f"ersde_lit: {command}: there is no folder data/nothere: ")
    assert error.count("\n") == 1


def test_what_a_config_says_of_the_data_is_refused_in_one_line(inside, capsys, tmp_path) -> None:
    assert main(["fit", "--config", str(CONFIGS / "imagenet64_edm_adm.yaml"), "--run=absent2"]) == 2
    assert "there is no folder data/imagenet64" in capsys.readouterr().err


def test_data_that_cannot_be_read_is_named_though_sizes_are_the_datas(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data=ersde_lit.data.ImagePairs", "--data.degraded=a", "--data.clean=b"]
    assert main(["fit", "--model.network=ersde_lit.networks.UNet", "--run=pairs", *data]) == 2
    assert capsys.readouterr().err == "ersde_lit: fit: there is no folder a\n"
    assert not [*tmp_path.iterdir()]


def test_a_classifier_is_trained_by_class_path_and_guides(inside, capsys) -> None:
    small = [f"--model.init_args.network.init_args.{change}" for change in ("width=8", "attention=[]", "blocks=1")]
    times = ["max_epochs=2", "check_val_every_n_epoch=1", "enable_progress_bar=false", "enable_model_summary=false"]
    options = [*small, *(f"--trainer.{change}" for change in times), "--compile=false"]
    command = ["fit", "--config", str(CONFIGS / "digits_classifier.yaml"), *options]
    assert main(command) == 0
    last = "runs/digits_classifier/checkpoints/last.ckpt"
    assert f"--classifier {last}" in capsys.readouterr().out
    classifier = load_classifier(last)
    assert classifier.images_seen == 2 * 12 * 128
    assert not torch.equal(classifier.network.embed_noise[0].weight, classifier.ema_network.embed_noise[0].weight)
    assert main(command) == 0
    assert "is finished" in capsys.readouterr().out
    assert main([*command, "--model.init_args.sigma_data=0.6"]) == 2
    assert "model.init_args.sigma_data" in capsys.readouterr().err
    sample = ["sample", "--ckpt_path=runs/digits/checkpoints/last.ckpt", "--seeds=0-3", "--nfe=2", "--labels=3"]
    assert main([*sample, "--out=plain.npz"]) == 0
    assert main([*sample, "--out=guided.npz", f"--classifier={last}", "--classifier_scale=4"]) == 0
    assert (np.load("plain.npz")["arr_0"] != np.load("guided.npz")["arr_0"]).any()
