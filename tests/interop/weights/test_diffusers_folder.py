"""Folders of diffusers as people have them: variants, shards, older forms; and what is assumed of them is said."""

import json
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
from diffusers import (  # noqa: E402
    DDIMPipeline,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    PNDMPipeline,
    PNDMScheduler,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file  # noqa: E402

from ersde_lit.cli import main  # noqa: E402
from ersde_lit.denoisers import VP, Cosine  # noqa: E402
from ersde_lit.interop.diffusers.scheduler import ERSDEScheduler  # noqa: E402
from ersde_lit.interop.weights.diffusers_process import FAMILIES  # noqa: E402
from ersde_lit.interop.weights.sources import read_source  # noqa: E402

NAME = "diffusion_pytorch_model"


@pytest.fixture
def made(tmp_path: Path) -> UNet2DModel:
    """The network of the pipeline in `tmp_path`."""
    torch.manual_seed(0)
    net = UNet2DModel(
        8, norm_num_groups=4, layers_per_block=1, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), attention_head_dim=8,
    )  # fmt: skip
    DDPMPipeline(net, DDPMScheduler()).save_pretrained(tmp_path)
    return net


def assert_read(folder: Path, net: UNet2DModel, note: str = "") -> None:
    model = read_source(folder)
    model.module()
    assert all(torch.equal(model.averaged[f"unet.{name}"], value) for name, value in net.state_dict().items())
    assert len(model.averaged) == len(net.state_dict())
    assert not note or any(note in line for line in model.notes)


def test_half_precision_alone(tmp_path, made) -> None:
    DDPMPipeline(made.half(), DDPMScheduler()).save_pretrained(tmp_path / "half", variant="fp16")
    assert_read(tmp_path / "half", made, "the variant 'fp16'")
    for kind in ("bf16", "non_ema"):
        (tmp_path / "half" / "unet" / f"{NAME}.{kind}.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="the variants bf16, fp16, non_ema"):
        read_source(tmp_path / "half")
    made.float().save_pretrained(tmp_path / "half" / "unet")  # the whole one goes before all
    assert_read(tmp_path / "half", made)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safe", [True, False])
def test_shards(tmp_path, made, variant: str | None, safe: bool) -> None:
    (tmp_path / "unet" / f"{NAME}.safetensors").unlink()
    made.save_pretrained(tmp_path / "unet", max_shard_size="10KB", safe_serialization=safe, variant=variant)
    assert len([*(tmp_path / "unet").glob("*-of-*")]) > 1
    assert_read(tmp_path, made, f"the variant {variant!r}" if variant else "")


def index(folder: Path, **places: str) -> None:
    (folder / "unet" / f"{NAME}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_an_index_that_lies(tmp_path, made) -> None:
    (tmp_path / "unet" / f"{NAME}.safetensors").rename(tmp_path / "elsewhere.safetensors")
    for name in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors"), "..", "", "a\\b.safetensors",
                 "config.json"):  # fmt: skip
        index(tmp_path, weight=name)
        with pytest.raises(ValueError, match=r"refused: .* is no name of a file of weights"):
            read_source(tmp_path)
    index(tmp_path, weight="absent.safetensors")
    with pytest.raises(ValueError, match=r"holds no absent\.safetensors, which"):
        read_source(tmp_path)
    (tmp_path / "elsewhere.safetensors").rename(tmp_path / "unet" / "a.safetensors")
    index(tmp_path, weight="a.safetensors")
    with pytest.raises(ValueError, match="lacks the weight 'weight'"):
        read_source(tmp_path)
    index(tmp_path)
    with pytest.raises(ValueError, match="no weight_map"):
        read_source(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "bin, before 1.6"])
def test_names_of_wrappers(tmp_path, made, kind: str) -> None:
    path = tmp_path / "unet" / f"{NAME}.safetensors"
    weights = {f"module._orig_mod.{name}": weight for name, weight in load_file(path).items()}
    path.unlink()
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path.with_suffix(".bin"), _use_new_zipfile_serialization=kind == "bin")
    assert_read(tmp_path, made)


def configured(folder: Path, **content: object) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(content))


def test_defaults_are_those_of_the_scheduler_and_are_said(tmp_path, made, capsys) -> None:
    configured(tmp_path, _class_name="DDPMScheduler", num_train_timesteps=1000)
    assert main(["import", str(tmp_path), f"--out={tmp_path}/a.ckpt"]) == 0
    said = "beta_schedule linear, beta_start 0.0001, beta_end 0.02, prediction_type epsilon"
    assert f"assumed, as DDPMScheduler does: {said}" in capsys.readouterr().out
    configured(tmp_path, _class_name="HeunDiscreteScheduler", num_train_timesteps=1000)
    model = read_source(tmp_path)
    assert model.settings["process"] == VP(0.85, 12.0, 1000)
    levels, expected = model.settings["process"].levels, HeunDiscreteScheduler().alphas_cumprod.double()
    torch.testing.assert_close(levels, (1 / expected - 1).sqrt(), rtol=5e-4, atol=0)
    configured(tmp_path, _class_name="DDPMScheduler", num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    assert read_source(tmp_path).notes[0] == "assumed, as DDPMScheduler does: prediction_type epsilon"


def test_x0_that_was_clamped_is_said(tmp_path, made) -> None:
    assert "clip_sample: DDPMScheduler clamps x0 at each step; the samplers here do not" in read_source(tmp_path).notes
    DDPMScheduler(clip_sample=False, thresholding=True).save_pretrained(tmp_path / "scheduler")
    assert "thresholding: DDPMScheduler clamps" in read_source(tmp_path).notes[0]
    DDPMScheduler(clip_sample=False).save_pretrained(tmp_path / "scheduler")
    assert read_source(tmp_path).notes == []


def test_an_older_name_of_the_prediction(tmp_path, made) -> None:
    configured(tmp_path, _class_name="DDPMScheduler", num_train_timesteps=1000, predict_epsilon=False)
    assert read_source(tmp_path).settings["prediction"] == "x0"
    configured(tmp_path, _class_name="DDPMScheduler", num_train_timesteps=1000, predict_epsilon=True)
    assert read_source(tmp_path).settings["prediction"] == "eps"


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family == "VP"])
def test_every_scheduler_of_the_process(tmp_path, made, name: str) -> None:
    if name != "ERSDEScheduler" and not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    cls = ERSDEScheduler if name == "ERSDEScheduler" else getattr(diffusers, name)
    try:
        scheduler = cls(beta_start=2e-4, beta_end=0.03)
    except ImportError as error:
        pytest.skip(str(error))
    scheduler.save_pretrained(tmp_path / "scheduler")
    process = read_source(tmp_path).settings["process"]
    assert process == VP(0.2, 30.0, 1000)
    expected = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(process.levels, (1 / expected - 1).sqrt(), rtol=5e-4, atol=0)


def test_options_taken_over_from_another_scheduler(tmp_path, made) -> None:
    scheduler = DPMSolverMultistepScheduler.from_config(DDPMScheduler(beta_schedule="squaredcos_cap_v2").config)
    scheduler.save_pretrained(tmp_path / "scheduler")
    assert read_source(tmp_path).settings["process"] == Cosine()


@pytest.mark.parametrize("pipeline", [DDIMPipeline, PNDMPipeline])
def test_other_pipelines(tmp_path, made, pipeline) -> None:
    pipeline(made, PNDMScheduler()).save_pretrained(tmp_path / "other")
    assert_read(tmp_path / "other", made, "clip_sample" if pipeline is DDIMPipeline else "")
    assert read_source(tmp_path / "other").settings["process"] == VP(steps=1000)
