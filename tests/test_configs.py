"""Every configuration runs, on small data of the right format and with a small network; recipes are as published."""

import math
import struct
from pathlib import Path

import lightning.pytorch as pl
import nibabel
import numpy as np
import pytest
import torch
import yaml
from image_sets import edm_files, fake_cifar10, pixels, write_batches, write_folder
from jsonargparse import ArgumentParser
from tiny import trainer

from ersde_lit.cli import main
from ersde_lit.data import Augment, fashion_mnist
from ersde_lit.data.brain import HUMAN, MACAQUE
from ersde_lit.networks import Network
from ersde_lit.training.power_ema import sigma_rel_of
from ersde_lit.training.spec import build

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if path.stem != "digits_classifier")
SMALL = {
    "UNet": {"width": 8, "multipliers": [1, 1], "attention": [1], "head_width": 8, "blocks": 1},
    "SongUNet": {"model_channels": 16, "num_blocks": 1},
    "DhariwalUNet": {"model_channels": 16, "num_blocks": 1},
    "EDM2UNet": {"model_channels": 8, "num_blocks": 1, "channels_per_head": 8},
}


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def small_data(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes a data set in folder / "data", where every configuration looks for it; returns options it needs."""
    (folder / "data").mkdir()
    if kind == "CIFAR10":
        write_folder(folder / "data" / "cifar-10-batches-py", fake_cifar10(monkeypatch))
    elif kind == "FashionMNIST":
        monkeypatch.setattr(fashion_mnist, "COUNTS", {"train": 20, "test": 20})
        images = struct.pack(">4i", 2051, 20, 28, 28) + pixels(20, 28, channels=1).tobytes()
        labels = struct.pack(">2i", 2049, 20) + bytes(20)
        files = {name: images if "images" in name else labels for name in fashion_mnist.FILES}
        write_folder(folder / "data" / "FashionMNIST" / "raw", files)
        return ["--data.val_size=10"]
    elif kind == "ImageArray":  # downsampled ImageNet, as its two archives unpack
        write_batches(folder / "imagenet", [pixels(10, 64), pixels(10, 64, seed=1)], [[*range(1, 11)], 10 * [1000]])
        assert main(["data", "imagenet", "--out", "data/imagenet64", "--val_size", "4"]) == 0
    elif kind == "BrainSlices":
        for name in (HUMAN, MACAQUE):
            nibabel.save(nibabel.Nifti1Image(np.full((30, 30, 30), 100, np.uint8), np.eye(4)), folder / name)
        return [f"--data.root={folder}"]
    elif kind == "ImagePairs":
        for part in ("degraded", "clean"):
            write_folder(folder / "data/shadows/train" / part, edm_files(pixels(12, 64), None))
        return ["--data.val_size=4"]
    elif kind == "Emoji":  # as if made of a font that is gone
        write_folder(folder / "emoji", edm_files(pixels(12, 64), None))
        assert main(["data", "emoji", "--out", "data/emoji64", "--val_size", "4", "--unlabelled"]) == 0
        return ["--data.font=gone.ttf"]
    else:
        assert kind == "Digits"  # inside scikit-learn
    return []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_runs(path: Path, tmp_path, monkeypatch) -> None:
    try_out(path, tmp_path, monkeypatch)
    assert not (tmp_path / "runs").exists()


def test_cifar10_is_class_conditional_by_one_option(tmp_path, monkeypatch) -> None:
    path = CONFIGS[0].with_name("cifar10_edm_ddpmpp.yaml")
    try_out(path, tmp_path, monkeypatch, "--model.network.init_args.label_dim=10")


def test_the_classifier_of_noisy_digits_learns(tmp_path) -> None:
    config = read(FOLDER / "digits_classifier.yaml")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningModule, "model")
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    pl.seed_everything(0, verbose=False)
    made = parser.instantiate(parser.parse_object({key: config[key] for key in ("model", "data")}))
    runner = trainer(tmp_path, max_epochs=8, check_val_every_n_epoch=8)  # of 40
    runner.fit(made.model, datamodule=made.data)
    assert runner.callback_metrics["val/accuracy"] > 0.6


def try_out(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """One step and one validation of two images, of a network of the same kind with few channels."""
    monkeypatch.chdir(folder)
    config = read(path)
    needed = small_data(config["data"]["class_path"].rpartition(".")[2], folder, monkeypatch)
    small = SMALL[config["model"]["network"]["class_path"].rpartition(".")[2]]
    needed += [f"--model.network.init_args.{name}={value}" for name, value in small.items()]
    needed += ["--data.batch_size=2", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    assert main(["fit", "--config", str(path), *needed, *options, *quiet, "--trainer.fast_dev_run=true"]) == 0


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [  # of the networks that were published with these names
        ("cifar10_edm_ddpmpp", 0, 55_733_891),
        ("cifar10_edm_ddpmpp", 10, 55_735_299),
        ("cifar10_edm_ncsnpp", 0, 56_397_827),
        ("cifar10_edm_ncsnpp", 10, 56_400_643),
        ("cifar10_vp", 0, 55_733_891),
        ("cifar10_ve", 0, 56_397_827),
        ("imagenet64_edm_adm", 1000, 295_899_267),
        ("imagenet64_edm2_xs", 1000, 124_710_949 - 128),  # without the weights of the uncertainty
        ("imagenet64_edm2_s", 1000, 280_209_381 - 128),
        ("imagenet64_edm2_m", 1000, 497_803_173 - 128),
        ("imagenet64_edm2_l", 1000, 777_492_325 - 128),
        ("imagenet64_edm2_xl", 1000, 1_119_276_837 - 128),
    ],
)
def test_networks_have_their_published_size(name: str, classes: int, parameters: int) -> None:
    network = published_network(name, classes)
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    assert network.num_classes == classes


def published_network(name: str, classes: int) -> Network:
    spec = read(CONFIGS[0].with_name(f"{name}.yaml"))["model"]["network"]
    spec["init_args"]["label_dim"] = classes
    with torch.device("meta"):
        return build(spec)


@pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if path.stem.startswith(("cifar10", "imagenet64_edm_"))],
    ids=lambda path: path.stem,
)
def test_recipes_are_the_published_ones(path: Path) -> None:
    config = read(path)
    model, trainer, batch = config["model"], config["trainer"], config["data"]["init_args"]["batch_size"]
    network = model["network"]["init_args"]
    found = (
        batch, trainer["max_steps"] * batch // 10**6, model["optimizer"]["lr"], model["ema"]["half_life"],
        network["dropout"], model.get("augment", {"probability": 0})["probability"],
    )  # fmt: skip
    # EDM's train.py: batch, duration in millions of images, lr, ema, dropout and augment, as its README says
    cifar10, imagenet = (512, 200, 1e-3, 500_000, 0.13, 0.12), (4096, 2500, 1e-4, 50_000_000, 0.1, 0)
    assert found == (cifar10 if "cifar10" in path.stem else imagenet)
    assert model["optimizer"]["warmup"] == 10_000_000
    assert model["optimizer"]["betas"] == [0.9, 0.999]
    summed = 3 * 32 * 32 if "cifar10" in path.stem else 100 * 3 * 64 * 64  # theirs is a sum, in ADM's with --ls=100
    assert model["optimizer"]["eps"] == pytest.approx(1e-8 / summed, rel=0.02)
    (fid,) = trainer["callbacks"]  # in the features of the FID that they quote, where these can be had
    assert (fid["init_args"]["features"], fid["init_args"]["nearest_images"]) == ("inception_or_classifier", 0)
    # a network that is not told of the augmentation would learn to draw it
    assert network.get("augment_dim", 0) == (Augment().num_conditions if "augment" in model else 0)


@pytest.mark.parametrize(
    ("size", "lr", "dropout", "images"),  # presets edm2-img64-* of EDM2's train_edm2.py; images over 2^20
    [("xs", 0.012, 0, 1024), ("s", 0.01, 0, 1024), ("m", 0.009, 0.1, 2048), ("l", 0.008, 0.1, 1024),
     ("xl", 0.007, 0.1, 640)],
)  # fmt: skip
def test_recipes_of_edm2_are_the_published_ones(size: str, lr: float, dropout: float, images: int) -> None:
    config = read(FOLDER / f"imagenet64_edm2_{size}.yaml")
    model, batch = config["model"], config["data"]["init_args"]["batch_size"]
    assert (batch, config["trainer"]["max_steps"] * batch, model["sigma_data"]) == (2048, images * 2**20, 0.5)
    course = {"lr": lr, "betas": [0.9, 0.99], "warmup": 10_000_000, "constant": 35_000 * batch}
    assert course.items() <= model["optimizer"].items()
    assert model["optimizer"]["eps"] == pytest.approx(1e-8 / (3 * 64 * 64), rel=0.01)  # of a mean, not a sum
    assert model["network"]["init_args"].get("dropout", 0) == dropout
    assert model["density"]["init_args"] == {"mean": -0.8, "std": 1.6}
    assert model["uncertainty"] is True
    assert config["trainer"]["callbacks"][0]["init_args"]["lengths"] == [0.05, 0.1]
    # an EMA whose half-life is always this share of the images seen is a power-function average
    assert sigma_rel_of(math.log(2) / model["ema"]["ramp_up"] - 1) == pytest.approx(0.1, rel=1e-3)
