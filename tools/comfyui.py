"""Compares our ComfyUI node with ComfyUI's own er_sde, inside ComfyUI's own sampling code, on a CPU.

    git clone https://github.com/comfyanonymous/ComfyUI           # and pip install -r ComfyUI/requirements.txt
    python tools/comfyui.py ComfyUI                               # half a minute

Writes tools/results/comfyui.md. The node is installed and loaded as ComfyUI loads custom nodes. The network is exact
for Gaussian data of 16 modes, std 1 to 0.01, as images of 4x2x2: an eps model with Stable Diffusion's noise levels and
a flow model with Stable Diffusion 3's. What a sampler makes of it is then a Gaussian, known without Monte Carlo.
"""

import asyncio
import platform
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor

from ersde_lit.solvers.oracles import BasisNoise, Gaussian, output_law, w2

LINE = "from ersde_lit.interop.comfyui import *\n"
DATA, IMAGE = Gaussian.spectrum(), (4, 2, 2)
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of their er_sde and of our node
    "ER-SDE 3, the published settings": ({}, {}),
    "ER-SDE 2": ({"max_stage": 2}, {"order": 2}),
    "reverse-time SDE": ({"noise_scaler": lambda lam: lam**2}, {"noise_scale": "sde"}),
    "ODE": ({"noise_scaler": lambda lam: lam, "s_noise": 0.0}, {"eta": 0.0}),
}
OURS = {
    "node, paper": {"paper": True},
    "node, corrector 0": {"corrector": 0},
    "node as it comes (corrector 3)": {},
    "node, order 4, corrector 4": {"order": 4, "corrector": 4},
    "node, corrector 0, nodes asinh, relative": {"corrector": 0, "nodes": "asinh, relative"},
}
SCHEDULES = {"eps": ["simple"], "flow": ["simple", "beta"]}  # whose levels are the network's own


def main(folder: Path, nfe: list[int] = [5, 10, 20, 50], out: Path | None = None) -> None:  # noqa: B006
    """Prints and writes three tables: their result against ours, both against exact, and both with their own noise.

    Args:
        folder: a checkout of ComfyUI.
        nfe: network calls, a column each.
        out: file to write instead of tools/results/comfyui.md.
    """
    comfy = Comfy(folder.resolve())
    lines = table("largest difference to er_sde, same noise", nfe)
    for kind in SCHEDULES:
        for title, (their, our) in SETTINGS.items():
            cells = [comfy.difference(kind, n, comfy.theirs(**their), comfy.ours(paper=True, **our)) for n in nfe]
            lines.append(row(f"{kind}: {title}", cells))
    lines += ["", *table("W2 to what an exact solution gives", nfe)]
    for kind, schedules in SCHEDULES.items():
        for schedule in schedules:
            samplers = {"er_sde": comfy.theirs(), **{title: comfy.ours(**options) for title, options in OURS.items()}}
            errors = {t: [comfy.error(kind, schedule, n, sampler) for n in nfe] for t, sampler in samplers.items()}
            best = [min(column) for column in zip(*errors.values(), strict=True)]
            lines += [row(f"{kind}, {schedule}: {title}", cells, best) for title, cells in errors.items()]
    lines += ["", *table("std over that of an exact solution, each sampler's own noise of seed 5", nfe)]
    for kind in SCHEDULES:
        for title, sampler in {"er_sde": comfy.theirs(), "node": comfy.ours()}.items():
            lines.append(
                f"| {kind}: {title} | " + " | ".join(f"{comfy.contrast(kind, n, sampler):.3f}" for n in nfe) + " |"
            )
    lines += ["", comfy.description(), ""]
    print("\n".join(lines))
    (out or Path(__file__).parent / "results" / "comfyui.md").write_text("\n".join(lines))


def table(title: str, nfe: list[int]) -> list[str]:
    return [f"| {title} | " + " | ".join(f"NFE {n}" for n in nfe) + " |", "|---|" + "---:|" * len(nfe)]


def row(title: str, cells: list[float], best: list[float] | None = None) -> str:
    shown = [f"**{cell:.2g}**" if best and cell == best[i] else f"{cell:.2g}" for i, cell in enumerate(cells)]
    return f"| {title} | " + " | ".join(shown) + " |"


class Exact(torch.nn.Module):
    """Network of a ComfyUI model; `sampling`, the model's, is set afterwards."""

    dtype = torch.float32
    sampling: Any

    def __init__(self, **options: Any):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))  # ComfyUI wants to load something

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> Tensor:
        flow = hasattr(self.sampling, "multiplier")
        sigma = (t / self.sampling.multiplier if flow else self.sampling.sigma(t)).double()[:, None]
        alpha = 1 - sigma if flow else (1 + sigma**2).rsqrt()
        noise = sigma if flow else sigma * alpha
        x = x.double().flatten(1)
        pure = alpha == 0  # no lam is large enough for it
        lam = torch.where(pure, 1e8, noise / alpha)
        x0 = DATA(torch.where(pure, 1e8 * x, x / alpha), lam)
        eps = (x - alpha * x0) / noise
        return (eps - x0 if flow else eps).float().view(-1, *IMAGE)


class Comfy:
    """ComfyUI's modules, and runs of its samplers."""

    def __init__(self, folder: Path):
        sys.argv = [str(folder / "main.py"), "--cpu"]
        sys.path.insert(0, str(folder))
        import_module("comfy.options").enable_args_parsing()
        self.folder = folder
        self.samplers = import_module("comfy.samplers")
        self.sampling = import_module("comfy.k_diffusion.sampling")
        self.sample = import_module("comfy.sample")
        nodes = import_module("nodes")
        with TemporaryDirectory() as custom_nodes:
            path = Path(custom_nodes) / "ersde_lit_nodes.py"
            path.write_text(LINE)
            assert asyncio.run(nodes.load_custom_node(str(path)))
        self.node = nodes.NODE_CLASS_MAPPINGS["ERSDELitSampler"]
        self.models = {"eps": self._model("EPS", {}), "flow": self._model("FLOW", {"shift": 3.0})}

    def _model(self, kind: str, settings: dict[str, Any]) -> Any:
        model_base = import_module("comfy.model_base")
        config = import_module("comfy.supported_models_base").BASE({})
        config.unet_config, config.sampling_settings = {}, settings
        model = model_base.BaseModel(config, model_base.ModelType[kind], unet_model=Exact)
        model.diffusion_model.sampling = model.model_sampling
        cpu = torch.device("cpu")
        return import_module("comfy.model_patcher").ModelPatcher(model, cpu, cpu)

    def theirs(self, **options: Any) -> Any:
        return self.samplers.ksampler("er_sde", options)

    def ours(self, **options: Any) -> Any:
        inputs = self.node.INPUT_TYPES()["required"]
        defaults = {name: more.get("default", kind[0]) for name, (kind, more) in inputs.items()}
        return getattr(self.node(), self.node.FUNCTION)(**{**defaults, **options})[0]

    def sigmas(self, kind: str, schedule: str, nfe: int) -> Tensor:
        return self.samplers.calculate_sigmas(self.models[kind].get_model_object("model_sampling"), schedule, nfe)

    def run(self, kind: str, sampler: Any, sigmas: Tensor, noise: Tensor) -> Tensor:
        cond = [[torch.zeros(1, 1, 1), {}]]
        arguments = (self.models[kind], noise, 1.0, sampler, sigmas, cond, cond, torch.zeros_like(noise))
        return self.sample.sample_custom(*arguments, disable_pbar=True, seed=5)

    def difference(self, kind: str, nfe: int, *samplers: Any) -> float:
        """Largest difference of two samplers given the same noise, over three schedules and 64 images."""
        noise = self.sample.prepare_noise(torch.zeros(64, *IMAGE), 3)
        largest = 0.0
        for schedule in ("simple", "karras", "beta"):
            results = []
            for sampler in samplers:
                sampler.extra_options["noise_sampler"] = self.sampling.default_noise_sampler(noise, seed=7)
                results.append(self.run(kind, sampler, self.sigmas(kind, schedule, nfe), noise))
            largest = max(largest, float((results[0] - results[1]).abs().max()))
        return largest

    def law(self, kind: str, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std that the last call of the network gives where its input has the exact law."""
        lam = (sigmas[-2] / (1 - sigmas[-2]) if kind == "flow" else sigmas[-2]).double()
        return DATA.mean, DATA.std**2 / DATA.marginal_std(lam)

    def error(self, kind: str, schedule: str, nfe: int, sampler: Any) -> float:
        """W2 distance of the sampler's output to `law`, from the exact law at the first level (flow: pure noise)."""
        sigmas = self.sigmas(kind, schedule, nfe)

        def run(y: Tensor, noise: BasisNoise) -> Tensor:
            def draw(sigma: Tensor, sigma_next: Tensor) -> Tensor:
                return noise.step(int((sigmas[1:] - sigma_next).abs().argmin())).view(-1, *IMAGE).float()

            sampler.extra_options["noise_sampler"] = draw
            start = y if kind == "flow" else y / (1 + sigmas[0] ** 2).sqrt()
            return self.run(kind, sampler, sigmas, start.view(-1, *IMAGE).float()).double().flatten(1)

        first = sigmas[0].double()
        pure = torch.zeros_like(DATA.mean), torch.ones_like(DATA.mean)
        start = pure if kind == "flow" else (DATA.mean, DATA.marginal_std(first))
        return w2(*output_law(run, *start, nfe), *self.law(kind, sigmas))

    def contrast(self, kind: str, nfe: int, sampler: Any) -> float:
        """Std of 20,000 images over that of `law`, the mean over modes; start and steps are both of seed 5."""
        sigmas = self.sigmas(kind, "simple", nfe)
        images = self.run(kind, sampler, sigmas, self.sample.prepare_noise(torch.zeros(20_000, *IMAGE), 5))
        return float((images.double().flatten(1).std(0) / self.law(kind, sigmas)[1]).mean())

    def description(self) -> str:
        command = ["git", "-C", str(self.folder), "log", "-1", "--format=%h of %cs"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
        version = import_module("comfyui_version").__version__
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ersde-lit", "torch"))
        return (
            "Both by `comfy.sample.sample_custom`; order 3, er_sde_5, eta 1 and s_noise 1 where not said otherwise. "
            f"First table: schedules simple, karras and beta, 64 images. ComfyUI {version}, commit {commit}, CPU, "
            f"{platform.machine()}, Python {platform.python_version()}, {versions}."
        )


if __name__ == "__main__":
    auto_cli(main)
