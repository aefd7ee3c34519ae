"""MRI bias fields removed: our samplers at 1 to 10 calls, plain regression by the same network, and N4.

    python -m ersde_lit fit --config configs/bias_field.yaml          # half an hour on a CPU core
    python -m ersde_lit fit --config configs/bias_field.yaml --run bias_field_regression \\
        --model.density '{class_path: ersde_lit.denoisers.LogNormal, init_args: {mean: 0, std: 0}}'   # lam = 1 alone
    python tools/bias_field.py

Held-out slices of the human brain that was trained on, and all of a macaque's, each under a field of its own, of up to
40 %, in 8 bits. Writes tools/results/bias_field.{csv,md,png}, and with --folder the human's slices as PNGs, for

    python -m ersde_lit restore --ckpt_path runs/bias_field/checkpoints/last.ckpt --images FOLDER/degraded \\
        --clean FOLDER/clean --out restored --nfe 5
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from restorations import RESULTS, Table, eight_bits, methods, ode, scores
from torch import Tensor

from ersde_lit.data import BrainSlices
from ersde_lit.data.brain import ROOT, WHITEST
from ersde_lit.denoisers import BiasField
from ersde_lit.metrics.fidelity import fidelity
from ersde_lit.sampling.grid import image_grid, save_png
from ersde_lit.sampling.images import quantise
from ersde_lit.training import load

SEED = 1_000_000  # of the first field
LARGEST = 0.4  # change of an intensity by a field
SETS = {"Human, held out": "test", "Macaque": "macaque"}
WHITE = WHITEST * 5 // 6  # grey level above which tissue is white matter


class Slices(NamedTuple):
    clean: Tensor  # [N, 1, H, W] in [-1, 1], as all images here
    degraded: Tensor
    field: Tensor  # what intensities are multiplied by


def slices(split: str, count: int | None, root: str) -> Slices:
    """Slices at equal distances, and what fields of up to 40 % make of them, rounded to 8 bits."""
    images = BrainSlices(root).split(split).images
    chosen = torch.linspace(0, len(images) - 1, count or len(images)).round().long()
    clean = images[chosen] / 127.5 - 1
    g = BiasField().field.draw(range(SEED, SEED + len(clean)), clean)
    change = (g.exp() - 1).abs() * (clean > -1)  # where there is brain
    factor = (LARGEST / change.amax((1, 2, 3), keepdim=True)).clamp(max=1)
    field = 1 + factor * (g.exp() - 1)
    return Slices(clean, eight_bits((clean + 1) * field - 1), field)


def n4(degraded: Tensor) -> Tensor:
    """N4 (Tustison et al. 2010) at SimpleITK's settings, within the brain; it leaves the scale open."""
    found = []
    for image in (degraded[:, 0] + 1) / 2:
        mask = sitk.GetImageFromArray((image > 0).numpy().astype(np.uint8))
        corrected = sitk.N4BiasFieldCorrection(sitk.GetImageFromArray(image.numpy()), mask)
        found.append(torch.from_numpy(sitk.GetArrayFromImage(corrected))[None])
    return 2 * torch.stack(found) - 1


def best_scale(restored: Tensor, clean: Tensor) -> Tensor:
    """Images times the factor that brings each nearest to the clean one."""
    v, true = restored + 1, clean + 1
    return v * (v * true).sum((1, 2, 3), keepdim=True) / v.square().sum((1, 2, 3), keepdim=True) - 1


def variation(restored: Tensor, clean: Tensor) -> float:
    """Mean over slices of the coefficient of variation in white matter, a pixel from all else, in %."""
    white = -F.max_pool2d(-(clean > WHITE / 127.5 - 1).float(), 3, 1, 1) > 0
    matter = [v[mask] for v, mask in zip(restored + 1, white, strict=True) if mask.sum() > 50]
    return 100 * sum((v.std() / v.mean()).item() for v in matter) / len(matter)


def main(
    ckpt_path: Path = Path("runs/bias_field/checkpoints/last.ckpt"),
    regression: Path = Path("runs/bias_field_regression/checkpoints/last.ckpt"),
    count: int | None = None,
    root: str = ROOT,
    folder: Path | None = None,
) -> None:
    """PSNR, SSIM, variation within white matter and time of every method.

    Args:
        ckpt_path: of configs/bias_field.yaml.
        regression: of the same, trained at lam = 1 alone.
        count: slices a set; all if not given.
        root: of the volumes.
        folder: for the human's slices as PNGs.
    """
    model = load(ckpt_path)
    table, picture = Table("MRI bias fields removed", "python tools/bias_field.py"), []
    for name, split in SETS.items():
        clean, degraded, field = slices(split, count, root)
        if folder is not None and split == "test":
            for part, images in (("clean", clean), ("degraded", degraded)):
                for k, image in enumerate(quantise(images)):
                    save_png(image, folder / part / f"{k:03d}.png")

        solved = ode(model)(degraded)

        def score(restored: Tensor, clean: Tensor = clean, solved: Tensor = solved) -> dict[str, float]:
            scaled = float(fidelity(best_scale(restored, clean), clean)["psnr"].mean())
            return scores(restored, clean, solved) | {"scaled dB": scaled, "CV(WM) %": variation(restored, clean)}

        own = [
            ("clean", 0, lambda degraded, clean=clean: clean),
            ("degraded", 0, lambda degraded: degraded),
            ("N4, scaled", 0, lambda degraded, clean=clean: best_scale(n4(degraded), clean)),
        ]
        restored = {
            method[:2]: table.add(f"{name}: {len(clean)} slices", method, degraded, score)
            for method in (*own, *methods(model, load(regression)))
        }
        chosen = torch.linspace(0.1 * len(clean), 0.9 * len(clean), 6).long()
        shown = degraded, restored["N4, scaled", 0], restored["order 2", 5], clean, (field - 1) / LARGEST
        picture += [images[chosen].clamp(-1, 1) for images in shown]
    table.write(
        "bias_field",
        model,
        f"Fields of seeds {SEED:,} on, of up to {LARGEST:.0%}, in 8 bits. N4 is SimpleITK {sitk.__version__}; as it "
        "leaves the scale open, its slices are scaled by the factor that brings each nearest to the clean one, and in "
        f"the column scaled those of all are. CV(WM): where the clean slice is above {WHITE} grey levels, a pixel from "
        "all else.",
    )
    save_png(image_grid(quantise(torch.cat(picture)), columns=6), RESULTS / "bias_field.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    auto_cli(main)
