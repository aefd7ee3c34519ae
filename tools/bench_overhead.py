"""What a step costs beside the network: our loop against diffusers' schedulers and k-diffusion's samplers.

    pip install --no-deps k-diffusion && pip install torchsde torchdiffeq        # optional
    python tools/bench_overhead.py                         # about 20 minutes on two CPU cores, else idle

Writes tools/results/overhead.{csv,md}. On a GPU, with a network of 52 M parameters as CUDA graphs:

    python tools/bench_overhead.py --device cuda --width 176 --batches [1,16,64] --compile reduce-overhead \
        --name overhead_gpu

All samplers take turns, run by run, and a number is the median of its runs. Set-up is our table, or `set_timesteps`,
and serves any number of runs with the same noise levels; steps are the rest, with their noise.
"""

import csv
import platform
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from jsonargparse import auto_cli
from torch import Tensor

from ersde_lit.denoisers import Denoiser
from ersde_lit.interop.rivals import k_diffusion_module
from ersde_lit.networks import UNet
from ersde_lit.solvers import ERSDE, DPMSolverPP, SeededNoise, Solver, grids, sample

RESULTS = Path(__file__).parent / "results"
HEADER = ["network", "side", "batch", "sampler", "nfe", "runs", "set_up_ms", "step_ms"]
OURS, RIVAL = "ours, DPM-Solver++(2M)", "diffusers, DPM-Solver++(2M)"
ER_SDE, NOISE = "ours, ER-SDE 3 + corrector", "its noise alone"
K_DIFFUSION = "k-diffusion, DPM-Solver++(2M)"
BARE = "bare network"

Run = Callable[[Any], Any]  # denoiser -> images [B, C, H, W]
SetUp = Callable[[int, Tensor, SeededNoise], Run]  # nfe, start [B, C, H, W], noise of the steps


def main(
    device: str = "cpu",
    batches: list[int] = [1, 16, 256],  # noqa: B006
    sides: list[int] = [32, 64],  # noqa: B006
    nfe: int = 20,
    runs: int = 101,
    width: int = 24,
    compile: str | None = None,
    seconds: float = 60,
    name: str = "overhead",
) -> None:
    """Milliseconds a step of every sampler, with a denoiser that does nothing and with a U-Net.

    Args:
        device: cpu or cuda.
        batches: images of 3 channels a batch.
        sides: their heights and widths.
        nfe: steps a run; 5 where the network is slow.
        runs: of each sampler, fewer where they would take longer than `seconds`, but 3.
        width: of the U-Net; 24 has 1 M parameters, 176 has 52 M.
        compile: mode of torch.compile for the network: default, or reduce-overhead for CUDA graphs.
        seconds: aimed at for each network, batch size and side.
        name: of the files written.
    """
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # numpy functions of tensors, in diffusers
    rows, rivals = [], samplers()
    for side in sides:
        network = unet(side, width, device, compile)
        for denoiser, title in ((nothing, "none"), (network, "U-Net")):
            for batch in batches:
                for row in measure(rivals, denoiser, (batch, 3, side, side), nfe, runs, seconds, device):
                    rows.append([title, side, batch, *row])
                    print("{:6}{:4}{:5}  {:32}{:3} steps x {:3} runs, ms: {:9.4f} + {:9.4f} a step".format(*rows[-1]))
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    (RESULTS / f"{name}.md").write_text(report(rows) + caption(network, compile, K_DIFFUSION in rivals))


def samplers() -> dict[str, SetUp]:
    dpm = diffusers.DPMSolverMultistepScheduler
    options = {"prediction_type": "sample", "use_karras_sigmas": True}
    found = {
        OURS: ours(DPMSolverPP()),
        ER_SDE: ours(ERSDE(3, corrector=3)),
        RIVAL: scheduler(dpm(**options)),
        "diffusers, SDE-DPM-Solver++(2M)": scheduler(dpm(**options, algorithm_type="sde-dpmsolver++")),
        "diffusers, UniPC-2": scheduler(diffusers.UniPCMultistepScheduler(**options)),
    }
    try:
        found[K_DIFFUSION] = k_diffusion()
    except ValueError as error:
        print(f"left out: {error}")
    return found


def ours(solver: Solver) -> SetUp:
    def set_up(nfe: int, y: Tensor, noise: SeededNoise) -> Run:
        tableau = solver.tableau(grids.edm(nfe))
        return lambda denoiser: sample(denoiser, tableau, y, noise=noise)

    return set_up


def scheduler(theirs: Any) -> SetUp:
    """A loop as in diffusers' pipelines."""

    def set_up(nfe: int, y: Tensor, noise: SeededNoise) -> Run:
        theirs.set_timesteps(nfe, device=y.device)

        def run(denoiser: Any) -> Tensor:
            x = y
            for t, sigma in zip(theirs.timesteps, theirs.sigmas, strict=False):
                x0 = denoiser(theirs.scale_model_input(x, t), sigma)
                x = theirs.step(x0, t, x, return_dict=False)[0]
            return x

        return run

    return set_up


def k_diffusion() -> SetUp:
    sampling = k_diffusion_module("sampling")

    def set_up(nfe: int, y: Tensor, noise: SeededNoise) -> Run:
        sigmas = sampling.get_sigmas_karras(nfe, 0.002, 80.0, device=y.device)
        return lambda denoiser: sampling.sample_dpmpp_2m(denoiser, y, sigmas, disable=True)

    return set_up


def nothing(y: Tensor, lam: Tensor) -> Tensor:
    return y


def unet(side: int, width: int, device: str, mode: str | None) -> Denoiser:
    denoiser = Denoiser(UNet((3, side, side), width=width, head_width=width)).to(device).eval().requires_grad_(False)
    if mode:
        denoiser.network.compile(mode=mode)
    return denoiser


@torch.no_grad()
def measure(
    samplers: dict[str, SetUp], denoiser: Any, shape: tuple[int, ...], nfe: int, runs: int, seconds: float, device: str
) -> list[list[Any]]:
    """[sampler, nfe, runs, milliseconds of set-up, of a step] of each."""
    noise = SeededNoise(range(shape[0]), shape[1:], device)
    start, c_noise = noise.initial() * 80, torch.zeros(shape[0], device=device)
    turns = dict(samplers)
    turns[NOISE] = lambda nfe, y, noise: lambda denoiser: [noise.step(i) for i in range(nfe - 1)]  # the last has none
    if denoiser is not nothing:
        turns = {label: turn for label, turn in turns.items() if label in (OURS, ER_SDE, NOISE, RIVAL, K_DIFFUSION)}
        turns[BARE] = lambda nfe, y, noise: lambda denoiser: [denoiser.network(y, c_noise) for _ in range(nfe)]
        bare = turns[BARE](1, start, noise)
        bare(denoiser)
        if 3 * len(turns) * nfe * clock(lambda: bare(denoiser), device)[0] > seconds:
            nfe = 5
    elif K_DIFFUSION in turns:  # nfe below 15: ours then ends in lower orders, as diffusers' does
        one, other = (turns[label](20, start, noise)(lambda y, lam: y / 2) for label in (OURS, K_DIFFUSION))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)

    times: dict[str, list[tuple[float, float]]] = {label: [] for label in turns}
    end = time.perf_counter() + seconds
    while len(times[OURS]) < 3 or (len(times[OURS]) < runs and time.perf_counter() < end):
        for label, set_up in turns.items():
            before, run = clock(lambda set_up=set_up: set_up(nfe, start, noise), device)
            steps, _ = clock(lambda run=run: run(denoiser), device)
            times[label].append((before, steps / nfe))
    return [
        [n, nfe, len(t), *(round(1e3 * median(part), 5) for part in zip(*t, strict=True))] for n, t in times.items()
    ]


def clock(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds that it took and what it returned."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronize()
    start = time.perf_counter()
    result = run()
    synchronize()
    return time.perf_counter() - start, result


def report(rows: list[list[Any]]) -> str:
    set_up = [f"{row[3]} {row[6]:.2f}" for row in rows if row[:3] == rows[0][:3] and row[3] != NOISE]
    ms = {(network, label, side, batch): step for network, side, batch, label, _, _, _, step in rows}
    columns = list(dict.fromkeys(key[2:] for key in ms))

    def overhead(label: str, side: int, batch: int) -> str:
        step, own = (ms["none", name, side, batch] for name in (label, OURS))
        return f"{step:.3f} ({step / own:.1f}x)" if label.startswith(("diffusers", "k-")) else f"{step:.3f}"

    def total(label: str, side: int, batch: int) -> str:
        step, bare, er_sde = (ms["U-Net", name, side, batch] for name in (label, BARE, ER_SDE))
        return {BARE: f"{step:.2f} ms a call", NOISE: f"{step / er_sde:.2%}"}.get(label, f"{step / bare:.3f}")

    def table(title: str, network: str, cell: Callable[[str, int, int], str]) -> list[str]:
        head = [f"{batch} x 3x{side}x{side}" for side, batch in columns]
        lines = [f"| {title} | {' | '.join(head)} |", "|---|" + "---:|" * len(columns)]
        for label in dict.fromkeys(key[1] for key in ms if key[0] == network):
            lines.append(f"| {label} | {' | '.join(cell(label, *column) for column in columns)} |")
        return [*lines, ""]

    return "\n".join(
        [
            *table("no network: ms a step (times ours of the same solver)", "none", overhead),
            *table("U-Net: time over that of as many calls of the bare network", "U-Net", total),
            f"Set-up, ms: {', '.join(set_up)}. ",
        ]
    )


def caption(denoiser: Denoiser, mode: str | None, k_diffusion: bool) -> str:
    parameters = sum(p.numel() for p in denoiser.parameters()) / 1e6
    on_gpu = next(denoiser.parameters()).is_cuda
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    names = ["ersde-lit", "torch", "diffusers"] + ["k-diffusion"] * k_diffusion
    return (
        f"Medians of runs taken in turn in one process; set-up is counted in neither table, as one serves any number "
        f"of runs; noise in the second is a share of an ER-SDE step. The U-Net has {parameters:.2f} M parameters"
        f"{f', torch.compile mode {mode}' if mode else ''}, float32. {where}, {platform.system()} "
        f"{platform.machine()}, Python {platform.python_version()}, "
        f"{', '.join(f'{n} {metadata.version(n)}' for n in names)}.\n"
    )


if __name__ == "__main__":
    auto_cli(main)
