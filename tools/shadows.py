"""Shadows removed from emoji: our samplers at 1 to 10 calls, and plain regression by the same network.

    python tools/shadows.py make                                       # pairs in data/shadows
    python -m ersde_lit fit --config configs/emoji_shadows.yaml        # a quarter of an hour on a CPU core
    python -m ersde_lit fit --config configs/emoji_shadows.yaml --run emoji_shadows_regression \\
        --model.density '{class_path: ersde_lit.denoisers.LogNormal, init_args: {mean: 0, std: 0}}'   # lam = 1 alone
    python tools/shadows.py measure

Writes tools/results/shadows.{csv,md,png}.
"""

import math
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from restorations import RESULTS, Table, methods, ode, scores
from torch import Tensor

from ersde_lit.data import Emoji
from ersde_lit.data.image_files import encode_png, image_names, read_image
from ersde_lit.sampling.grid import image_grid, save_png
from ersde_lit.sampling.images import quantise
from ersde_lit.training import load


def shadowed(image: Tensor, seed: int) -> Tensor:
    """An image [3, H, W] in [-1, 1] under a soft star-shaped shadow, bluish, of random place, shape and depth."""
    draw = np.random.default_rng(seed)
    height, width = image.shape[1:]
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    cx, cy = draw.uniform(0.1, 0.9, 2)
    angle, radius = torch.atan2(y - cy, x - cx), torch.hypot(y - cy, x - cx)
    edge = torch.full_like(angle, draw.uniform(0.2, 0.5))
    for k in range(1, 5):
        edge *= 1 + draw.uniform(0, 0.5 / k) * torch.cos(k * angle + draw.uniform(0, 2 * math.pi))
    shade = torch.sigmoid((edge - radius) / draw.uniform(0.01, 0.04))
    depth = draw.uniform(0.3, 0.7) + np.array([0.05, 0.0, -0.05])  # red is darkened most
    kept = 1 - shade * torch.tensor(depth, dtype=image.dtype).view(-1, 1, 1)
    return (image + 1) * kept - 1


def make(root: str = "data", out: Path = Path("data/shadows")) -> None:
    """Writes out/{train,test}/{clean,degraded}: one shadow an emoji, those held out by `Emoji` in "test"."""
    emoji = Emoji(root)
    for split, name in (("train", "train"), ("test", "val")):
        for k, pixels in enumerate(emoji.split(name).images):
            clean = pixels / 127.5 - 1
            seed = k if split == "train" else 1_000_000 + k
            for part, image in (("clean", clean), ("degraded", shadowed(clean, seed))):
                path = out / split / part / f"{k:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_png(image, 8))


def read(folder: Path, names: list[str]) -> Tensor:
    return torch.stack([read_image(folder / name)[0] for name in names])


def measure(
    ckpt_path: Path = Path("runs/emoji_shadows/checkpoints/last.ckpt"),
    regression: Path = Path("runs/emoji_shadows_regression/checkpoints/last.ckpt"),
    root: Path = Path("data/shadows/test"),
    count: int | None = None,
) -> None:
    """PSNR and SSIM of the held-out emoji, or of `count` of them, at equal distances."""
    names = image_names(root / "clean")
    names = [names[k] for k in torch.linspace(0, len(names) - 1, count or len(names)).round().long()]
    clean, degraded = read(root / "clean", names), read(root / "degraded", names)
    model = load(ckpt_path)
    table = Table("Shadows removed from emoji", "python tools/shadows.py measure")
    solved = ode(model)(degraded)
    every = (("degraded", 0, lambda degraded: degraded), *methods(model, load(regression)))
    restored = {
        method[:2]: table.add(
            f"{len(clean)} held-out emoji", method, degraded, lambda images: scores(images, clean, solved)
        )
        for method in every
    }
    table.write("shadows", model, "The shadows are those of `make`, in 8 bits.")
    shown = torch.linspace(0, len(clean) - 1, 12).long()
    rows = degraded, restored["regression", 1], restored["order 2", 5], clean
    save_png(
        image_grid(quantise(torch.cat([images[shown] for images in rows])), columns=len(shown)), RESULTS / "shadows.png"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    auto_cli([make, measure])
