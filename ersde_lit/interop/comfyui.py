"""Adds ER-SDE-Solvers to ComfyUI as a node, "ER-SDE sampler (ersde-lit)", for SamplerCustom and SamplerCustomAdvanced.

"Learned sampler (ersde-lit)" beside it reads a file of tables, and gives the sampler with its sigmas.

With ersde-lit installed in ComfyUI's Python, one line in ComfyUI's folder installs it:

    echo "from ersde_lit.interop.comfyui import *" > custom_nodes/ersde_lit_nodes.py

The name of that file is free, but for ersde_lit.py. The nodes are in sampling/custom_sampling/samplers.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ersde_lit import solvers
from ersde_lit.interop.k_diffusion import is_const, is_flow, sample_with, table_sigmas
from ersde_lit.names import MAX_SEED
from ersde_lit.solvers import ERSDE, Solver, Tableau, check_lams, read_tables
from ersde_lit.solvers.paper import paper_tableau

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

NOISE_SCALES = ["er_sde_5", "er_sde_1", "er_sde_2", "er_sde_3", "er_sde_4", "sde", "ode"]  # ComfyUI checks lists only
NODES = ["lam", "log", "asinh", "asinh, relative"]
_START = 1e-4  # of the schedule; where ComfyUI's own samplers start a flow model
_POINTS = 200  # of the sums in ComfyUI's er_sde


# Not "seed", which ComfyUI would change after each run.
STEP_SEED = (
    "INT",
    {"default": -1, "min": -1, "max": MAX_SEED, "tooltip": "Seed of the added noise; -1 takes ComfyUI's noise seed."},
)


class AsComfyUI(ERSDE):
    """The published algorithm as ComfyUI's er_sde has it: sums of 200 points, and no variance is too small."""

    def tableau(self, lams: Tensor) -> Tableau:
        return paper_tableau(check_lams(lams), solvers.noise_scale(self.noise_scale), self.order, _POINTS, 0)


def sampler_function(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Any,
    disable: bool,
    *,
    solver: Solver,
    seed: int,
    **options: Any,
) -> Tensor:
    """What ComfyUI calls: `sample_with`, from where its own samplers start, with the node's seed unless that is -1."""
    if seed >= 0:
        extra_args = {**extra_args, "seed": seed}
    return sample_with(solver, model, x, _start(model, sigmas), extra_args, callback, disable, **options)


def _start(model: Any, sigmas: Tensor) -> Tensor:
    """Sigmas in which a flow model's pure noise, of no finite lam, has the level ComfyUI's own samplers give it."""
    if not (is_flow(model) and len(sigmas) and sigmas[0] >= 1):
        return sigmas
    sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    return torch.cat([sigmas.new_tensor([sampling.percent_to_sigma(_START)]), sigmas[1:]])


class ERSDESamplerNode:
    """The node; its inputs are the options of `ersde_lit.solvers.ERSDE`."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/custom_sampling/samplers"
    DESCRIPTION = "Extended reverse-time SDE solver of any order and noise scale, with exact coefficients."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def number(kind: str, default: float, low: float, high: float, tooltip: str, **more: Any) -> tuple[str, Any]:
            return kind, {"default": default, "min": low, "max": high, "tooltip": tooltip, **more}

        fine = {"step": 0.01, "round": False}
        return {
            "required": {
                "order": number("INT", 3, 1, 5, "Denoised images that a step makes use of."),
                "noise_scale": (
                    NOISE_SCALES,
                    {
                        "tooltip": "How much noise a step adds at each noise level: none with ode, as much as the "
                        "reverse SDE with sde; er_sde_5 is the paper's choice. er_sde_4 is not valid above "
                        "lam 1022, where flow models start."
                    },
                ),
                "eta": number("FLOAT", 1, 0, 10, "Strength of the noise scale: 0 is the ODE, 1 as named.", **fine),
                "s_noise": number("FLOAT", 1, 0, 100, "Factor of the noise that is added; 1 is right.", **fine),
                "corrector": number("INT", 3, 0, 5, "Nodes of the corrector, which costs no model call; 0 for none."),
                "nodes": (
                    NODES,
                    {
                        "tooltip": "Variable in which denoised images are interpolated: the noise level lam (sigma, in "
                        "flow models sigma / (1 - sigma)), its logarithm (orders 1 and 2, or ode), or "
                        "asinh(lam / nodes_scale), of lam itself or relative to each step's."
                    },
                ),
                "nodes_scale": number("FLOAT", 2, 0.01, 100, "Scale of the asinh nodes; else without effect.", **fine),
                "paper": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "The published algorithm, as ComfyUI's er_sde has it, orders 1 to 3; ignores the "
                        "corrector and the nodes.",
                    },
                ),
                "step_seed": STEP_SEED,
            }
        }

    def get_sampler(
        self,
        order: int,
        noise_scale: str,
        eta: float,
        s_noise: float,
        corrector: int,
        nodes: str,
        nodes_scale: float,
        paper: bool,
        step_seed: int,
    ) -> tuple[Any]:
        """A KSAMPLER; ValueError, which ComfyUI shows, where the solver refuses an option."""
        from comfy.samplers import KSAMPLER  # type: ignore[import-not-found]

        solver = (AsComfyUI if paper else ERSDE)(
            order,
            solvers.eta(noise_scale, eta),
            corrector or None,
            nodes_scale if nodes.startswith("asinh") else nodes,
            paper,
            relative=nodes.endswith("relative"),
        )
        return (KSAMPLER(sampler_function, {"solver": solver, "seed": step_seed, "s_noise": s_noise}),)


class TablesNode:
    """The node of learned tables: a sampler, and the sigmas that go with it."""

    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    FUNCTION = "get_sampler"
    CATEGORY = ERSDESamplerNode.CATEGORY
    DESCRIPTION = "A sampler that was learned for a model, from a file of tables, with its sigmas."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "file": (
                    "STRING",
                    {"default": "", "tooltip": "Path of a .tables file, which `tune` wrote."},
                ),
                "steps": (
                    "INT",
                    {"default": 5, "min": 1, "max": 1000, "tooltip": "Model calls, as the file has."},
                ),
                "step_seed": STEP_SEED,
            }
        }

    @classmethod
    def IS_CHANGED(cls, file: str | None, **others: Any) -> Any:
        """The file's content, by which ComfyUI knows whether the sampler of the last run will do; NaN is always new."""
        try:
            return hashlib.sha256(Path(file or "").expanduser().read_bytes()).hexdigest()
        except OSError:  # absent, or a name that ComfyUI does not know yet
            return math.nan

    def get_sampler(self, model: Any, file: str, steps: int, step_seed: int) -> tuple[Any, Tensor]:
        """A KSAMPLER and sigmas; ValueError, which ComfyUI shows, where the file has no such table."""
        from comfy.samplers import KSAMPLER

        tables = read_tables(file)
        sigmas = table_sigmas(tables, steps, is_const(model.get_model_object("model_sampling")))
        return KSAMPLER(sampler_function, {"solver": tables, "seed": step_seed}), sigmas


NODE_CLASS_MAPPINGS = {"ERSDELitSampler": ERSDESamplerNode, "ERSDELitTables": TablesNode}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ERSDELitSampler": "ER-SDE sampler (ersde-lit)",
    "ERSDELitTables": "Learned sampler (ersde-lit)",
}
