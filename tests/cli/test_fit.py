import numpy as np
import pytest
import torch
from quick_start import CONFIGS, SMALL_GRID, fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ersde_lit.cli import main
from ersde_lit.data import Digits
from ersde_lit.training import DiffusionModule, load


def test_a_run_leaves_its_configuration_checkpoint_curves_and_pictures(inside) -> None:
    run = inside / "runs" / "digits"
    assert {"config.yaml", "checkpoints", "logs", "samples", "finished"} <= {p.name for p in run.iterdir()}
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["last.ckpt"]
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


def test_predict_generates_the_test_data_anew(inside, capsys) -> None:
    assert main(["predict", *fit()[1:]]) == 0
    with np.load("runs/digits/predictions/00001-0.npz") as file:
        assert file["arr_0"].shape == (180 - 128, 8, 8, 1)
        assert torch.equal(torch.from_numpy(file["arr_1"]), Digits().split("test").labels[128:])
    assert main(["predict", *fit()[1:]]) == 2
    assert "move it away first" in capsys.readouterr().err


def test_without_a_checkpoint_nothing_is_validated(inside, capsys) -> None:
    assert main(["validate", *fit("--run=absent")[1:]]) == 2
    assert "no checkpoint at runs/absent" in capsys.readouterr().err


def test_fast_dev_run_leaves_nothing(inside) -> None:
    assert main(fit("--run=trial", "--trainer.fast_dev_run=2")) == 0
    assert not (inside / "runs/trial").exists()


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
        (["--model.network.init_args.widht=8"], "widht"),
        (["--model.prediction=noise"], "prediction"),
        (["--model.preconditioning=vp"], "preconditioning 'vp' needs the process VP, got VE"),
        (["--model.label_dropout=2"], "label_dropout is a probability"),
        (["--model.network.init_args.width=12"], "multiple of 8"),
        (["--model.network.init_args.image_shape=[1,4,4]"], "images are (1, 8, 8), the network's (1, 4, 4)"),
        (["--data.batch_size=100000"], "batch_size 100000 exceeds"),
        (["--data.class_path=ersde_lit.data.Nothing"], "Nothing"),
        (["--config=absent.yaml"], "absent.yaml"),
        (["--trainer.devices=0"], "devices"),
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
