"""Models of latents, through the command line."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from autoencoder import LATENTS, autoencoder, decoded
from einops import rearrange
from PIL import Image
from tiny import Noise, network, trainer

from ersde_lit.callbacks import FIDCallback
from ersde_lit.cli import main
from ersde_lit.cli.prediction_writer import PredictionWriter
from ersde_lit.metrics import Features
from ersde_lit.sampling.decoder import FILES, QUANTISATION
from ersde_lit.sampling.formats import read_meta
from ersde_lit.sampling.views import Preview
from ersde_lit.solvers import default
from ersde_lit.training import DiffusionModule, load
from ersde_lit.training.averaged import SPEC_KEY

SAMPLE = ["sample", "--ckpt_path=latents.ckpt", "--seeds=0-5", "--nfe=3"]


class Corners(Features):
    """Six numbers of an image."""

    num_features = 6

    def forward(self, images):
        return images.float()[:, :, 0, :2].flatten(1)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    autoencoder(folder / "vae")
    torch.manual_seed(0)
    for name, channels, latents in (("latents", 4, LATENTS), ("pixels", 3, None)):
        module = DiffusionModule(network(image_shape=(channels, 4, 4)), latents=latents)
        for weight in module.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
        torch.save({"state_dict": module.state_dict(), SPEC_KEY: module.spec}, folder / f"{name}.ckpt")
    return folder


@pytest.fixture(autouse=True)
def inside(workplace, monkeypatch) -> None:
    monkeypatch.chdir(workplace)


def images(path: str) -> np.ndarray:
    with np.load(path) as file:
        return file["arr_0"].astype(int)


def test_images_are_those_decoded_by_hand_and_the_decoder_is_kept_with_them(tmp_path) -> None:
    assert main([*SAMPLE, "--decoder=vae", "--out=by_hand.npz"]) == 0
    with torch.no_grad():
        latents = load("latents.ckpt").sample(range(6), nfe=3)
    assert latents.shape == (6, 4, 4, 4)
    expected = rearrange(decoded(autoencoder(tmp_path), latents), "n c h w -> n h w c").int().numpy()
    assert np.abs(images("by_hand.npz") - expected).max() <= 1
    assert (images("by_hand.npz") != expected).mean() < 0.01
    meta = read_meta("by_hand.npz")
    assert meta["paths"]["decoder"] == "vae"
    parts = "".join(hashlib.sha256(Path("vae", name).read_bytes()).hexdigest() for name in FILES)
    assert meta["checkpoints"]["decoder"] == hashlib.sha256(parts.encode()).hexdigest()


def test_a_folder_of_pictures_and_views_of_them(monkeypatch) -> None:
    shown: list[torch.Size] = []
    monkeypatch.setattr(Preview, "show", lambda preview, images: shown.append(images.shape))
    assert main([*SAMPLE, "--decoder=vae", "--out=a.npz"]) == 0
    assert main([*SAMPLE, "--decoder=vae", "--out=a", "--preview=now.png", "--trajectory=steps.png"]) == 0
    assert np.abs(np.asarray(Image.open("a/000002.png")).astype(int) - images("a.npz")[2]).max() <= 1
    assert shown == [(4, 3, 8, 8)] * 3 + [(6, 3, 8, 8)]  # four at each step, and all in the end
    assert Image.open("steps.png").mode == "RGB"


def test_samples_are_made_again_with_their_decoder_only(capsys) -> None:
    assert main([*SAMPLE, "--decoder=vae", "--out=once.npz"]) == 0
    assert main(["sample", "--like=once.npz", "--seeds=4", "--out=again.npz"]) == 0
    assert np.abs(images("again.npz")[0] - images("once.npz")[4]).max() <= 1
    autoencoder("other", layers_per_block=2)
    assert main(["sample", "--like=once.npz", "--seeds=4", "--decoder=other", "--out=other.npz"]) == 2
    assert "other is not the file that once.npz was made with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SAMPLE, "the model samples latents: give --decoder, the folder"),
        ([*SAMPLE, "--decoder=nowhere"], "there is nothing at --decoder nowhere"),
        ([*SAMPLE, "--decoder=."], "--decoder . holds no config.json"),
        ([*SAMPLE, "--ckpt_path=pixels.ckpt", "--decoder=vae"], "this one samples pixels: leave it out"),
        (
            ["evaluate", "--ckpt_path=latents.ckpt", "--nfe=3", "--data=ersde_lit.data.Digits"],
            "the model samples latents: give --decoder, the folder",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(capsys, options: list[str], message: str) -> None:
    assert main([*options, "--out=none.npz"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("none.npz").exists()


def test_evaluate_measures_the_images(monkeypatch) -> None:
    monkeypatch.setattr(Corners, "__module__", "of_latents")
    monkeypatch.setitem(sys.modules, "of_latents", sys.modules[__name__])
    assert main([*SAMPLE, "--decoder=vae", "--out=reference.npz"]) == 0
    features = ["--features=of_latents.Corners", "--reference=reference.npz"]
    options = ["--seeds", "0-5", "--nfe=3", "--solvers=default", "--decoder=vae", "--out=measured"]
    assert main(["evaluate", "--ckpt_path=latents.ckpt", *features, *options]) == 0
    record = json.loads(Path("measured/cells.jsonl").read_text())
    assert record["scores"]["fid"] == pytest.approx(0, abs=1e-6)  # the very images of the reference
    assert record["protocol"]["quantisation"] == QUANTISATION


def test_what_needs_images_is_refused_at_the_start(tmp_path) -> None:
    module = DiffusionModule(network(image_shape=(4, 4, 4)), latents=LATENTS)
    runner = trainer(tmp_path, callbacks=[FIDCallback({"default": default(3)}), PredictionWriter(tmp_path)])
    with pytest.raises(ValueError, match="FIDCallback measures images, and the model samples latents"):
        runner.fit(module, datamodule=Noise())
    with pytest.raises(ValueError, match="predict writes images, and the model samples latents"):
        runner.predict(module, datamodule=Noise())
