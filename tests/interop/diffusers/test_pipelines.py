"""Within diffusers' pipelines and their loops, on tiny networks, the schedulers make what our samplers make."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

from ersde_lit.denoisers import VP, Denoiser, Flow  # noqa: E402
from ersde_lit.interop.diffusers.scheduler import ERSDEFlowMatchScheduler, ERSDEScheduler  # noqa: E402
from ersde_lit.networks import Network  # noqa: E402
from ersde_lit.solvers import ERSDE, TableSampler, grids, sample  # noqa: E402

OPTIONS: dict[str, Any] = {"order": 2, "noise_scale": "er_sde_3", "corrector": 3}


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


class Wrapped(Network):
    """A network of diffusers as ours: c_noise of the discrete VP process is the timestep."""

    image_shape, num_classes = (3, 8, 8), 0

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        out: Tensor = self.unet(x, c_noise).sample
        return out


class Generators:
    """The noise of a pipeline that is given one generator an image; its start is x, not y = lam eps."""

    def __init__(self, seeds: list[int], shape: tuple[int, ...], lam: float, dtype: torch.dtype = torch.float32):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.scale, self.dtype = shape, (1 + lam**2) ** 0.5 / lam, dtype

    def initial(self) -> Tensor:
        return self.scale * self.draw(self.dtype)

    def step(self, i: int) -> Tensor:
        return self.draw(torch.float32)

    def draw(self, dtype: torch.dtype) -> Tensor:
        return torch.cat([torch.randn(1, *self.shape, generator=g, dtype=dtype) for g in self.generators])


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def ddpm(unet: Any, prediction: str) -> Any:
    pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(prediction_type=prediction))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = ERSDEScheduler.from_config(pipe.scheduler.config, clip_sample=False, **OPTIONS)
    return pipe


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_ddpm_pipeline_makes_what_our_sampler_makes(
    unet: Any, prediction: str, dtype: torch.dtype, atol: float, monkeypatch: Any
) -> None:
    """x is to y as 1 to 157 at the start, so that float32 keeps 5 digits of x0."""
    unet = copy.deepcopy(unet).to(dtype)
    pipe = ddpm(unet, prediction)
    states = []
    step = pipe.scheduler.step
    monkeypatch.setattr(pipe.scheduler, "step", lambda *a, **k: states.append(step(*a, **k)) or states[-1])
    pipe(2, generators([3, 4]), num_inference_steps=10, output_type="pt")
    images = states[-1].prev_sample  # the pipeline clips what it returns

    timesteps = torch.arange(999, 0, -99.9).round().long()
    lams = torch.cat([grids.vp_levels()[timesteps], torch.zeros(1)])
    kind = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}[prediction]
    denoiser = Denoiser(Wrapped(unet), VP(steps=1000), "vp", kind)
    sampler = TableSampler(ERSDE(**OPTIONS), grids.Fixed(lams.tolist()))
    ours = sampler(denoiser, Generators([3, 4], (3, 8, 8), float(lams[0]), dtype), 10)
    torch.testing.assert_close(images, ours, rtol=atol / 10, atol=atol)


def test_images_of_a_pipeline_depend_on_their_generators_alone(unet: Any) -> None:
    pipe = ddpm(unet, "sample")

    def images(seeds: list[int]) -> Tensor:
        out: Tensor = pipe(len(seeds), generators(seeds), num_inference_steps=6, output_type="pt").images
        return out

    together = images([3, 4, 5, 6])
    assert 0.05 < together.std() < 0.45  # most are not clipped
    torch.testing.assert_close(images([5]), together[2:3], rtol=0, atol=1e-5)
    torch.testing.assert_close(images([6, 3]), together[[3, 0]], rtol=0, atol=1e-5)


def test_a_pipeline_is_saved_and_loaded_with_its_scheduler(unet: Any, tmp_path: Path) -> None:
    pipe = ddpm(unet, "sample")
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is ERSDEScheduler
    arguments = {"num_inference_steps": 3, "output_type": "pt"}
    first, second = (p(1, generators([3]), **arguments).images for p in (pipe, again))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)  # other memory, other kernels: not the same bits


def test_ddpm_pipelines_default_of_1000_steps_has_all_levels(unet: Any) -> None:
    scheduler = ERSDEScheduler.from_config(diffusers.DDPMScheduler().config)
    scheduler.set_timesteps(1000)
    tableau = ERSDE().tableau(scheduler._lams)
    assert tableau.nfe == 1000
    assert tableau.c.isfinite().all()


@pytest.fixture(scope="module")
def conditional() -> Any:
    torch.manual_seed(1)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()


def stable_diffusion(unet: Any, scheduler: Any, latents: Tensor, texts: Tensor, draws: Any, start: int = 0) -> Tensor:
    """The loop of Stable Diffusion's pipelines, guided at 2; texts hold the unconditional one last."""
    prompts = torch.cat([texts[-1:].expand(len(latents), -1, -1), texts[: len(latents)]])
    scheduler.set_begin_index(start)
    for t in scheduler.timesteps[start:]:
        model_input = scheduler.scale_model_input(torch.cat([latents] * 2), t)
        uncond, text = unet(model_input, t, prompts, return_dict=False)[0].chunk(2)
        guided = uncond + 2.0 * (text - uncond)
        latents = scheduler.step(guided, t, latents, generator=draws, return_dict=False)[0]
    return latents


STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "_class_name": "PNDMScheduler",
}


@torch.no_grad()
@pytest.mark.parametrize("start", [0, 4])
def test_stable_diffusions_loop_makes_what_our_guided_sampler_makes(conditional: Any, start: int) -> None:
    """From noise, and from an image with noise of step 4 as image to image does."""
    scheduler = ERSDEScheduler.from_config(STABLE_DIFFUSION, **OPTIONS)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == [90 * k + 1 for k in range(10, 0, -1)]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    trained = (1 / (1 - betas).cumprod(0) - 1).sqrt()
    lams = torch.cat([trained[scheduler.timesteps], torch.zeros(1)])[start:]
    texts = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))

    drawn = Generators([3, 4], (3, 8, 8), float(lams[0]))
    noise, draws = drawn.step(-1), drawn.generators
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5
    if start:
        scheduler.set_begin_index(start)
        latents = scheduler.add_noise(image, noise, scheduler.timesteps[start].repeat(2))
        y = image + lams[0].float() * noise
    else:
        latents = noise * scheduler.init_noise_sigma
        y = noise * float(1 + lams[0] ** 2) ** 0.5
    made = stable_diffusion(conditional, scheduler, latents, texts, draws, start)

    class Guided(torch.nn.Module):
        """Of eps, as the pipeline guides; `ClassifierFree` is the same of x0."""

        def forward(self, y: Tensor, lam: Tensor) -> Tensor:
            level = int((trained - lam).abs().argmin())
            x, t = y * float(1 + lam**2) ** -0.5, torch.full((2,), level)
            eps = [conditional(x, t, text).sample for text in (texts[-1:].expand(2, -1, -1), texts[:2])]
            return y - lam * (eps[0] + 2.0 * (eps[1] - eps[0]))

    again = Generators([3, 4], (3, 8, 8), float(lams[0]))
    again.step(-1)
    ours = sample(Guided(), ERSDE(**OPTIONS).tableau(lams), y, noise=again)
    torch.testing.assert_close(made, ours, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_flow_pipelines_loop_makes_what_our_sampler_makes(unet: Any) -> None:
    """As Stable Diffusion 3 and Flux step: velocity, timesteps 1000 t, a shift, pure noise to start from."""
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    scheduler = ERSDEFlowMatchScheduler.from_config(config, **OPTIONS)
    scheduler.set_timesteps(8)
    drawn = Generators([3, 4], (3, 8, 8), 1.0)
    latents = drawn.step(-1)
    start = latents
    for t in scheduler.timesteps:
        latents = scheduler.step(unet(latents, t).sample, t, latents, generator=drawn.generators).prev_sample

    t = torch.linspace(1, 3e-3 / 1.002, 8, dtype=torch.float64)
    t = 3 * t / (1 + 2 * t)
    t[0] = 0.999
    denoiser = Denoiser(Wrapped(unet), Flow(), "flow", "v")
    lams = torch.cat([t / (1 - t), torch.zeros(1)])
    again = Generators([3, 4], (3, 8, 8), 1.0)
    again.step(-1)
    ours = sample(denoiser, ERSDE(**OPTIONS).tableau(lams), start * float(1 + lams[0]), noise=again)
    torch.testing.assert_close(latents, ours, rtol=1e-5, atol=1e-4)
