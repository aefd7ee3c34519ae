"""The paper's "VP on par with VE" on real data: the digits models under one sampler, three sets of seeds each.

    for name in digits digits_vp digits_ve; do python -m ersde_lit fit --config configs/$name.yaml; done
    python tools/digits_vp_ve.py

Writes tools/results/digits_vp_ve.md.
"""

import os
import platform
from importlib import metadata
from pathlib import Path

import torch
from digits_accuracy import read_right
from jsonargparse import auto_cli

from ersde_lit.data import Digits
from ersde_lit.metrics import Scores, classifier, reference_of
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import ERSDE, TableSampler
from ersde_lit.training import load

MODELS = {"EDM": "digits", "VP, noise prediction": "digits_vp", "VE, score prediction": "digits_ve"}
SAMPLES = 1797


def main(runs: Path = Path("runs"), nfe: int = 20, seed_sets: int = 3) -> None:
    """Prints and writes the table.

    Args:
        runs: folder of the three finished runs.
        nfe: network calls an image.
        seed_sets: sets of 1,797 seeds a model.
    """
    features = classifier(Digits())
    scores = Scores(features, reference_of(Digits(), features))
    lines = ["| model | images trained on | FID of each seed set | read right by an SVM |", "|---|---:|---|---:|"]
    for title, name in MODELS.items():
        model = load(runs / name / "checkpoints" / "last.ckpt")
        fids, rights = [], []
        for k in range(seed_sets):
            seeds = range(k * SAMPLES, (k + 1) * SAMPLES)
            sampler = TableSampler(ERSDE(3, corrector=3))
            blocks = list(generate(model.ema_denoiser, sampler, seeds, nfe, batch_size=300))
            images = quantise(torch.cat([block.images for block in blocks]))
            scores.reset()
            scores.update(images)
            fids.append(scores.compute()["fid"])
            rights.append(
                read_right(images.numpy(), torch.cat([b.labels for b in blocks if b.labels is not None]).numpy())
            )
        cells = ", ".join(f"{value:.3f}" for value in fids)
        lines.append(f"| {title} | {model.images_seen:,} | {cells} | {sum(rights) / len(rights):.1%} |")
        print(lines[-1], flush=True)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ersde-lit", "torch", "torchmetrics"))
    lines += [
        "",
        f"ER-SDE order 3 with corrector 3, er_sde_5, EDM grid, NFE {nfe}; {seed_sets} sets of {SAMPLES:,} seeds; "
        f"FID to the 1,617 training images in {features.description}. {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {versions}.",
        "",
    ]
    path = Path(__file__).parent / "results" / "digits_vp_ve.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines))


if __name__ == "__main__":
    auto_cli(main)
