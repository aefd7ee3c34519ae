"""Sampling function with ER-SDE-Solvers for k-diffusion, ComfyUI and stable-diffusion-webui:

    from ersde_lit.interop.k_diffusion import sample_er_sde

    k_diffusion.sampling.sample_er_sde = sample_er_sde        # ComfyUI: comfy.k_diffusion.sampling

It imports none of them; they share its signature.
"""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from ersde_lit.denoisers.processes import VE, Flow
from ersde_lit.errors import UserError
from ersde_lit.interop.diffusers.levels import flow_lams
from ersde_lit.names import MAX_SEED
from ersde_lit.solvers import ERSDE, SavedTables, SeededNoise, Solver, custom, read_tables, sample
from ersde_lit.solvers.noise_scale import NoiseScale
from ersde_lit.solvers.tableau import as_float64

NoiseSampler = Callable[[Tensor, Tensor], Tensor]


def sample_er_sde(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    noise_scaler: Callable[[Tensor], Tensor] | None = None,
    max_stage: int | None = None,
    *,
    order: int = 3,
    noise_scale: str | NoiseScale = "er_sde_5",
    corrector: int | None = None,
    nodes: str | float = "lam",
    relative: bool = False,
    paper: bool = False,
    flow: bool | None = None,
    tables: SavedTables | str | Path | None = None,
) -> Tensor:
    """Samples from x at ``sigmas[0]`` to the state at ``sigmas[-1]``, the denoised x if that is 0.

    Args:
        model: ``model(x, sigma [B], **extra_args) -> denoised x``, called once a step.
        x: [B, ...] ``x0 + sigma eps``, of a flow model ``(1 - sigma) x0 + sigma eps``. Arithmetic is at least in
            float32; the model's input and the result have x's dtype.
        sigmas: (N+1,) descending, the last usually 0.
        extra_args: passed to the model. Its "seed", if any, also seeds the noise: of image k with seed + k, or with the
            k-th of a list, modulo 2^48, independent of batch and device. Default: torch's global generator.
        callback: called with a dict of x, i, sigma, sigma_hat and denoised after each call of the model.
        disable: tqdm's argument.
        s_noise: factor of the noise that the solver adds.
        noise_sampler: ``(sigma, sigma_next) -> noise``, standard normal and shaped like x, instead of the seed's.
        noise_scaler, max_stage: ComfyUI's names for noise_scale (phi as a function of lam) and order, which they
            override.
        order, noise_scale, corrector, nodes, relative, paper: as in `ersde_lit.solvers.ERSDE`.
        flow: whether this is a flow model; None asks ComfyUI's model, and is False for others.
        tables: learned, or a file of them, in place of a solver with these options; sigmas are then `table_sigmas`.

    Raises:
        ValueError: sigmas not descending, not a seed an image, an option out of range, or a noise scale not valid at
            these sigmas.
        FloatingPointError: the model's output was not finite; names the first such step.
    """
    phi = noise_scale if noise_scaler is None else custom(noise_scaler)
    solver: Solver = ERSDE(max_stage or order, phi, corrector, nodes, paper, relative)
    if tables is not None:
        solver = read_tables(tables) if isinstance(tables, str | Path) else tables
    return sample_with(solver, model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler, flow)


def table_sigmas(tables: SavedTables, nfe: int, flow: bool = False) -> Tensor:
    """The sigmas (nfe + 1,) of the table of so many calls, float32: its lams, or of a flow model its times."""
    lams = tables.grid(nfe)
    return (Flow().t_of_lam(lams) if flow else lams).float()


@torch.no_grad()
def sample_with(
    solver: Solver,
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    flow: bool | None = None,
) -> Tensor:
    """Samples as `sample_er_sde` does, with any solver that has a table; the model is told the levels of the table's
    calls."""
    if len(sigmas) < 2:
        return x
    extra_args = extra_args or {}
    process = Flow() if (is_flow(model) if flow is None else flow) else VE()
    levels = as_float64(sigmas)
    with torch.device("cpu"):
        tableau = solver.tableau(flow_lams(levels) if isinstance(process, Flow) else levels)
    alphas, of_calls = (process.alpha_of_lam(lams).tolist() for lams in (tableau.lams, tableau.told))
    ones, calls, told = x.new_ones(len(x)), iter(range(tableau.nfe)), sigmas
    if tableau.calls is not None:
        told = process.t_of_lam(tableau.calls).to(sigmas)

    def denoiser(y: Tensor, lam: Tensor) -> Tensor:
        i = next(calls)
        return model((of_calls[i] * y).to(x.dtype), told[i] * ones, **extra_args)

    with tqdm(total=len(sigmas) - 1, disable=disable) as bar:

        def report(i: int, lam: Tensor, y: Tensor, denoised: Tensor) -> None:
            if callback is not None:
                state = (alphas[i] * y).to(x.dtype)
                callback({"x": state, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
            bar.update()

        y = x.to(torch.promote_types(x.dtype, torch.float32)) / alphas[0]
        noise = _Noise(noise_sampler, x, extra_args.get("seed"), sigmas, s_noise)
        y = sample(denoiser, tableau, y, noise=noise, callback=report)
    return (alphas[-1] * y).to(x.dtype)


class _Noise:
    """Noise sampler with the interface of `StepNoise`, scaled by s_noise."""

    def __init__(self, sampler: NoiseSampler | None, x: Tensor, seed: Any, sigmas: Tensor, s_noise: float):
        self.s_noise = s_noise
        self.draw: Callable[[int], Tensor] = lambda i: torch.randn_like(x)
        if sampler is not None:
            self.draw = lambda i: sampler(sigmas[i], sigmas[i + 1])
        elif seed is not None:
            seed = seed.tolist() if hasattr(seed, "tolist") else seed  # numbers of numpy and torch
            seeds = range(seed, seed + len(x)) if isinstance(seed, int) else seed
            if len(seeds) != len(x):
                raise UserError(f"{len(x)} images need as many seeds, or the first one's, not {len(seeds)}")
            dtype = torch.promote_types(x.dtype, torch.float32)
            noise, draws = SeededNoise([s & MAX_SEED for s in seeds], x.shape[1:], x.device, dtype), count()
            self.draw = lambda i: noise.step(next(draws))  # numbered by draws, as some steps add no noise

    def step(self, i: int) -> Tensor:
        return self.s_noise * self.draw(i)


def is_flow(model: Any) -> bool:
    """Whether ComfyUI says so: its sampling classes of flow models derive from one called CONST."""
    try:
        sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    except AttributeError:
        return False
    return is_const(sampling)


def is_const(sampling: Any) -> bool:
    """Whether ComfyUI's object "model_sampling" is that of a flow model."""
    return any(base.__name__ == "CONST" for base in type(sampling).__mro__)
