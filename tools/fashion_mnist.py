"""FID of the leading samplers on one Fashion-MNIST denoiser, on several sets of seeds: `evaluate` with these samplers.

    python -m ersde_lit fit --config configs/fashion_mnist.yaml        # about an hour on two CPU cores
    python tools/fashion_mnist.py --ckpt_path runs/fashion_mnist/checkpoints/last.ckpt

    python tools/fashion_mnist.py --name fashion_mnist_grid --samples 2500 --sets 1 --nfes [5,10,20]  # half an hour

Writes tools/results/NAME.{csv,md,png} and fashion_mnist_samples.png, ten images of each class by the default sampler at
20 NFE. Resumable, also in the middle of a cell: what is measured, and images under way, are in runs. Images that
`python -m ersde_lit sample` made with the same options (--batch_size 125) are used from runs/NAME_evaluation/images.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from ersde_lit.cli.evaluate import WhatOptions, evaluate
from ersde_lit.cli.options.guidance import GuidanceOptions
from ersde_lit.cli.options.machine import MachineOptions
from ersde_lit.cli.options.model import ModelOptions
from ersde_lit.cli.options.reference import ReferenceOptions
from ersde_lit.cli.options.sweep import SweepOptions
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.grid import image_grid, save_png
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import default
from ersde_lit.training import load

RESULTS = Path(__file__).parent / "results"
SAMPLERS: dict[str, dict[str, Any]] = {  # as options of `sample`
    "default(nfe)": {},
    "noisy(nfe)": {"solver": "noisy"},
    "ER-SDE 3, published": {"solver": "er_sde", "order": 3, "paper": True},
    "ER-SDE 3": {"solver": "er_sde", "order": 3},
    "ER-SDE 3 + corrector": {"solver": "er_sde", "order": 3, "corrector": 3},
    "ER-SDE 2 + corrector, nodes 0.5": {"solver": "er_sde", "order": 2, "corrector": 2, "nodes": 0.5},
    "ODE 3 + corrector": {"solver": "er_sde", "order": 3, "noise_scale": "ode", "corrector": 3},
    "DDIM": {"solver": "ddim"},
    "DPM-Solver++(2M)": {"solver": "dpm++2m"},
    "SDE-DPM-Solver++(2M)": {"solver": "sde_dpm++2m"},
    "UniPC-2": {"solver": "unipc2"},
    "EDM Heun": {"solver": "heun"},
    "DEIS-3": {"solver": "deis"},
    "iPNDM-4": {"solver": "ipndm"},
}
LEADING = [
    "default(nfe)", "noisy(nfe)", "ER-SDE 3, published", "ER-SDE 3 + corrector", "DPM-Solver++(2M)",
    "SDE-DPM-Solver++(2M)", "UniPC-2", "DEIS-3", "iPNDM-4",
]  # fmt: skip


def main(
    ckpt_path: Path = RESULTS / "fashion_mnist.ckpt",
    samples: int = 10_000,
    sets: int = 3,
    nfes: list[int] = [10, 20],  # noqa: B006
    samplers: list[str] = LEADING,
    root: str = "data",
    name: str = "fashion_mnist",
    devices: int = 1,
) -> None:
    """Mean and spread of the FID over the sets of seeds, of every sampler at every NFE.

    Args:
        ckpt_path: a checkpoint of configs/fashion_mnist.yaml.
        samples: images a cell; set k is of the seeds k * samples .. (k + 1) * samples - 1.
        sets: of seeds.
        nfes: network calls an image.
        samplers: some of SAMPLERS.
        root: where the data set is.
        name: of the results, and of the working folder, runs/NAME_evaluation.
        devices: processes that share the work.
    """
    if unknown := [name for name in samplers if name not in SAMPLERS]:
        raise ValueError(f"no sampler {unknown[0]!r}: choose from {', '.join(SAMPLERS)}")
    out = Path("runs") / f"{name}_evaluation"
    out.parent.mkdir(exist_ok=True)
    report = evaluate(
        WhatOptions(str(ckpt_path), out=str(out)),
        ModelOptions(),
        [f"{k * samples}-{(k + 1) * samples - 1}" for k in range(sets)],
        SweepOptions(nfes, samplers={name: SAMPLERS[name] for name in samplers}),
        ReferenceOptions(f"ersde_lit.data.FashionMNIST:root={root}", features="classifier"),
        GuidanceOptions(),
        MachineOptions(batch_size=125, accelerator="cpu", devices=devices),
    )
    if report is not None:
        for file in ("results.csv", "results.md", "fid.png"):
            shutil.copy(out / file, (RESULTS / name).with_suffix(Path(file).suffix))
        picture(ckpt_path)


def picture(ckpt_path: Path) -> None:
    """Seeds 0 to 99, a row a class."""
    labels = torch.arange(10).repeat_interleave(10)
    (block,) = generate(load(ckpt_path).ema_denoiser, default(20), range(100), 20, labels, batch_size=100)
    save_png(image_grid(quantise(block.images), 10), RESULTS / "fashion_mnist_samples.png")


if __name__ == "__main__":
    try:
        auto_cli(main, as_positional=False)
    except ValueError as error:
        sys.exit(f"fashion_mnist: {error}")
