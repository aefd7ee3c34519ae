import json
import sys
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
from diffusers import (  # noqa: E402
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file  # noqa: E402

from ersde_lit.denoisers import VE, VP, Cosine, ScaledLinear  # noqa: E402
from ersde_lit.interop.weights.diffusers_unet import DiffusersUNet  # noqa: E402
from ersde_lit.interop.weights.model import write  # noqa: E402
from ersde_lit.interop.weights.sources import read_source  # noqa: E402
from ersde_lit.training import load  # noqa: E402
from ersde_lit.training.spec import build  # noqa: E402

TINY = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8}  # fmt: skip
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def unet(**changes) -> UNet2DModel:
    torch.manual_seed(0)
    made = UNet2DModel(**{**TINY, **changes}).eval().requires_grad_(False)
    for weight in made.parameters():
        scale = 0.7 / max(weight[0].numel(), 1) ** 0.5 if weight.ndim > 1 else 0.2
        weight.copy_(torch.randn_like(weight) * scale + (weight.ndim == 1))
    return made


def saved(folder: Path, scheduler=None, **changes) -> UNet2DModel:
    made = unet(**changes)
    DDPMPipeline(unet=made, scheduler=scheduler or DDPMScheduler()).save_pretrained(folder)
    return made


def test_checkpoints_may_name_the_class_by_its_old_module() -> None:
    path = "ersde_lit.interop.diffusers_unet.DiffusersUNet"
    assert type(build({"class_path": path, "init_args": {"config": TINY}})) is DiffusersUNet


CASES = {
    "ddpm": (DDPMScheduler(), {}, VP(steps=1000)),
    "ddim": (DDIMScheduler(beta_start=2e-4, beta_end=0.01), {"flip_sin_to_cos": False}, VP(0.2, 10.0, 1000)),
    "v, cosine": (
        DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"), {}, Cosine()
    ),
    "x0, scaled linear, classes": (
        DDPMScheduler(beta_schedule="scaled_linear", prediction_type="sample", beta_start=8.5e-4, beta_end=0.012),
        {"num_class_embeds": 5}, ScaledLinear(0.85, 12.0, 1000),
    ),
    "500 steps, variances, oblong": (
        DDPMScheduler(num_train_timesteps=500, variance_type="learned_range"),
        {"out_channels": 6, "sample_size": (8, 16), "resnet_time_scale_shift": "scale_shift"}, VP(0.05, 10.0, 500),
    ),
    "2000 steps, each with its own embedding": (
        DDPMScheduler(2000), {"time_embedding_type": "learned", "num_train_timesteps": 2000}, VP(0.2, 40.0, 2000)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_images_and_processes_are_those_of_diffusers(case: str, tmp_path: Path) -> None:
    scheduler, changes, process = CASES[case]
    made = saved(tmp_path / "pipeline", scheduler, **changes)
    write(read_source(tmp_path / "pipeline"), tmp_path / "net.ckpt")
    module = load(tmp_path / "net.ckpt")  # plain data: without trust
    own = module.denoiser.network.state_dict()
    assert {name.removeprefix("unet.") for name in own} == made.state_dict().keys()
    assert all(torch.equal(own[f"unet.{name}"], value) for name, value in made.state_dict().items())
    assert module.denoiser.process == process

    steps = scheduler.config.num_train_timesteps
    t = torch.tensor([0, steps // 3, steps - 1])
    alpha_bar = scheduler.alphas_cumprod.double()
    levels = ((1 - alpha_bar) / alpha_bar).sqrt()
    torch.testing.assert_close(module.denoiser.levels, levels, rtol=5e-4, atol=0)  # theirs are float32's
    lam = module.denoiser.levels[t].float()
    alpha, sigma = torch.rsqrt(1 + lam**2).view(-1, 1, 1, 1), (lam * torch.rsqrt(1 + lam**2)).view(-1, 1, 1, 1)
    x = torch.randn(3, *module.image_shape)
    labels = torch.tensor([0, 2, 4]) if module.num_classes else None
    out = made(x, t, **({} if labels is None else {"class_labels": labels})).sample[:, :3]
    x0 = {"epsilon": (x - sigma * out) / alpha, "v_prediction": alpha * x - sigma * out, "sample": out}
    expected = x0[scheduler.config.prediction_type]
    ours = module.ema_denoiser(x / alpha, lam, labels)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("embedding", ["fourier", "positional"])
@pytest.mark.parametrize("centred", [False, True])
@torch.no_grad()
def test_ve_models_give_the_score_that_their_pipeline_takes(tmp_path: Path, embedding: str, centred: bool) -> None:
    made = unet(time_embedding_type=embedding, center_input_sample=centred)
    ScoreSdeVePipeline(made, ScoreSdeVeScheduler(sigma_max=348.0)).save_pretrained(tmp_path / "pipeline")
    report = write(read_source(tmp_path / "pipeline"), tmp_path / "net.ckpt")
    assert "ve, prediction score, process VE" in report
    assert "sigma 0.01 to 348 of its images, in [0, 1], is twice that in lam" in report
    module = load(tmp_path / "net.ckpt")
    assert module.denoiser.process == VE(0.02, 696.0)
    images = torch.rand(5, 3, 8, 8)  # of the pipeline, which has them in [0, 1]
    sigma = torch.tensor([0.01, 0.3, 5.0, 80.0, 348.0])
    x = images + sigma.view(-1, 1, 1, 1) * torch.randn(5, 3, 8, 8)
    score = made(x, sigma).sample
    x0 = x + sigma.view(-1, 1, 1, 1) ** 2 * score
    ours = (module.ema_denoiser(2 * x - 1, 2 * sigma) + 1) / 2
    for one, other in zip(ours, x0, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * other.abs().max().item())


@torch.no_grad()
def test_no_class_is_a_class_of_zeros() -> None:
    network = DiffusersUNet({**TINY, "num_class_embeds": 3}).eval()
    x, c_noise = torch.randn(2, 3, 8, 8), torch.tensor([4.0, 900.0])
    none = network(x, c_noise, torch.tensor([-1, -1]))
    assert torch.equal(none, network(x, c_noise))
    assert not torch.allclose(none, network(x, c_noise, torch.tensor([0, 0])))
    network.unet.class_embedding.weight.zero_()
    assert torch.equal(none, network(x, c_noise, torch.tensor([2, 1])))
    with pytest.raises(ValueError, match="augmentation"):
        network(x, c_noise, augment=torch.zeros(2, 9))


def test_old_names_of_attention(tmp_path: Path) -> None:
    made = saved(tmp_path)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = load_file(tmp_path / WEIGHTS)
    for new, name in old.items():
        weights = {key.replace(new, name): value for key, value in weights.items()}
    assert any("proj_attn" in key for key in weights)
    save_file(weights, tmp_path / WEIGHTS)
    averaged = read_source(tmp_path).averaged
    assert all(torch.equal(averaged[f"unet.{name}"], value) for name, value in made.state_dict().items())


def test_weights_that_torch_saved(tmp_path: Path) -> None:
    made = saved(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save(made.state_dict(), tmp_path / "unet" / "diffusion_pytorch_model.bin")
    model = read_source(tmp_path)
    model.module()
    assert all(torch.equal(model.averaged[f"unet.{name}"], value) for name, value in made.state_dict().items())


def edited(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in {**content, **changes}.items() if value != "absent"}))


CONFIG, SCHEDULER, INDEX = "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (INDEX, {"unet": ["diffusers", "UNet2DConditionModel"]}, "holds a DDPMPipeline: only UNet2DModel"),
        (INDEX, {"unet": "absent"}, "only UNet2DModel"),
        (CONFIG, {"layers_per_block": 10**9}, "describes a larger network than its"),
        (CONFIG, {"block_out_channels": [2**20, 2**21]}, "larger network than its"),
        (CONFIG, {"layers_per_block": 2}, "lacks"),
        (CONFIG, {"down_block_types": ["EvilBlock", "DownBlock2D"]}, "does not take the arguments"),
        (CONFIG, {"sample_size": None}, "needs sample_size and in_channels"),
        (CONFIG, {"class_embed_type": "timestep"}, "takes no classes but other conditions"),
        (CONFIG, {"depth": 1}, "does not know 'depth'"),
        (INDEX, {"_class_name": "LDMPipeline"}, "holds a LDMPipeline: only DDPMPipeline"),
        (INDEX, {"_class_name": ["community", "DDPMPipeline"]}, r"holds a \['community'"),
        (INDEX, {"_class_name": "ScoreSdeVePipeline"}, "a ScoreSdeVePipeline with the scheduler 'DDPMScheduler'"),
        (INDEX, {"scheduler": ["mine", "MyScheduler"]}, "with the scheduler 'MyScheduler'"),
        (CONFIG, {"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel: only"),
        (CONFIG, {"time_embedding_type": "fourier"}, "time_embedding_type 'fourier' does not fit"),
        (CONFIG, {"time_embedding_type": "learned", "num_train_timesteps": 10}, "num_train_timesteps 10, not 1000"),
        (SCHEDULER, {"_class_name": "ScoreSdeVeScheduler"}, "with the scheduler 'ScoreSdeVeScheduler'"),
        (SCHEDULER, {"_class_name": "KarrasVeScheduler"}, "with the scheduler 'KarrasVeScheduler'"),
        (SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "'FlowMatchEulerDiscreteScheduler' cannot"),
        (SCHEDULER, {"_class_name": "EDMEulerScheduler"}, "'EDMEulerScheduler' cannot"),
        (SCHEDULER, {"_class_name": "LCMScheduler"}, "'LCMScheduler' cannot"),
        (SCHEDULER, {"_class_name": "CogVideoXDDIMScheduler"}, "'CogVideoXDDIMScheduler' cannot"),
        (SCHEDULER, {"snr_shift_scale": 3.0}, "with snr_shift_scale cannot be imported"),
        (SCHEDULER, {"use_flow_sigmas": True}, "with use_flow_sigmas cannot be imported"),
        (SCHEDULER, {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "with timestep_type"),
        (SCHEDULER, {"shift": 3.0}, "with shift, an option of other models' schedulers"),
        (SCHEDULER, {"sigma_data": 0.5}, "with sigma_data, an option of other"),
        (SCHEDULER, {"prediction_type": "flow_prediction"}, "prediction_type cannot be read: 'flow_prediction'"),
        (SCHEDULER, {"beta_start": "x"}, "values cannot be read"),
        (SCHEDULER, {"trained_betas": [0.1]}, "with trained_betas"),
        (SCHEDULER, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr cannot be imported"),
        (SCHEDULER, {"beta_schedule": "sigmoid"}, "with beta_schedule 'sigmoid' cannot be imported"),
        (SCHEDULER, {"num_train_timesteps": "absent"}, "only one of discrete steps"),
        (SCHEDULER, {"num_train_timesteps": 10**9}, "at most 100,000 steps"),
        (SCHEDULER, {"num_train_timesteps": "x"}, "cannot be read"),
        (SCHEDULER, {"num_train_timesteps": True}, "at least 2"),
        (SCHEDULER, {"num_train_timesteps": 1}, "at least 2"),
        (SCHEDULER, {"predict_epsilon": False, "prediction_type": "epsilon"}, "contradicts itself"),
        (INDEX, {"unet": ["mine", "UNet2DModel"]}, "UNet2DModel is of 'mine', not of diffusers"),
        (INDEX, {"scheduler": ["mine", "DDPMScheduler"]}, "DDPMScheduler is of 'mine', not of diffusers"),
        (CONFIG, {"sample_size": 7}, "no multiple of 2"),
        (CONFIG, {"sample_size": [8, 7]}, "no multiple of 2"),
        (SCHEDULER, {"prediction_type": "flow"}, "cannot be read: 'flow'"),
    ],
)
def test_what_cannot_be_imported_is_said(tmp_path: Path, file: str, changes: dict, message: str) -> None:
    saved(tmp_path)
    edited(tmp_path / file, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_source(tmp_path).module()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
@pytest.mark.parametrize("file", [INDEX, CONFIG, SCHEDULER])
def test_damaged_descriptions(tmp_path: Path, file: str, text: str) -> None:
    saved(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        read_source(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder of diffusers' DDPMPipeline"):
        read_source(tmp_path)
    saved(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="no safetensors file"):
        read_source(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        read_source(tmp_path)


def test_without_diffusers_it_is_said_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r'pip install "ersde-lit\[diffusers\]"'):
        DiffusersUNet(TINY)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    saved(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: weight.to(dtype) for name, weight in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=f"of the type {dtype}, in its network torch.float32"):
        read_source(tmp_path).module()


def test_weights_of_8_bits_become_float32(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    small = {name: weight.to(torch.float8_e4m3fn) for name, weight in load_file(path).items()}
    save_file(small, path)
    model = read_source(tmp_path)
    stored = model.checkpoint(model.module())["state_dict"]
    assert {weight.dtype for weight in stored.values()} == {torch.float32}
    name = "conv_in.weight"
    assert torch.equal(stored[f"denoiser.network.unet.{name}"], small[name].float())
