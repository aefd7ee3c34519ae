"""What guidance does to generated digits: more of them are what they should be, and they differ less.

    python tools/digits_guidance.py

Trains in runs/digits_guidance, if that is not done yet, a small denoiser with label dropout (through `fit`) and a
classifier of noisy images: minutes each on one CPU core. Writes tools/results/digits_guidance.md.
"""

import os
import platform
from importlib import metadata
from pathlib import Path

import torch
from digits_accuracy import read_right
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from ersde_lit.cli import main as ersde_lit
from ersde_lit.data import Digits
from ersde_lit.denoisers import (
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    CleanClassifier,
    EpsilonScaling,
    Unconditional,
    smoothed,
)
from ersde_lit.metrics import Classifier, Recipe, Scores, classifier, reference_of
from ersde_lit.networks import ClassifierEncoder
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import default
from ersde_lit.training import AdamW, AtomicCheckpointIO, NoisyClassifier, load, load_classifier

ROOT = Path(__file__).parents[1]
RUN = Path("runs/digits_guidance")
FIT = [
    "fit", f"--config={ROOT}/configs/digits.yaml", f"--run={RUN.name}", "--model.label_dropout=0.2",
    "--model.network.init_args.width=16", "--trainer.max_epochs=40", "--trainer.enable_progress_bar=false",
    '--trainer.callbacks=[{"class_path": "ModelCheckpoint", "init_args": {"every_n_epochs": 5, "save_top_k": -1, '
    f'"dirpath": "{RUN}/checkpoints", "filename": "{{epoch}}", "save_on_train_epoch_end": true}}}}]',
]  # fmt: skip
SAMPLES = 1797


class CleanDigits(nn.Module):
    """A classifier trained on clean digits, off the shelf: images in [-1, 1] to logits."""

    def __init__(self, net: Classifier) -> None:
        super().__init__()
        self.body, self.head = net.body, net.head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3)))


def noisy_classifier() -> NoisyClassifier:
    """The one in the run's folder, trained if it is not there."""
    path = RUN / "classifier.ckpt"
    if not path.exists():
        seed_everything(0)
        network = ClassifierEncoder((1, 8, 8), 10, width=16, multipliers=(1, 2), attention=(1,), dropout=0.1)
        module = NoisyClassifier(network, sigma_data=0.7, optimizer=AdamW(2e-3, warmup=2500, decay=0.3))
        trainer = Trainer(
            max_epochs=60, check_val_every_n_epoch=60, accelerator="cpu", devices=1, plugins=[AtomicCheckpointIO()],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=Digits())
        trainer.save_checkpoint(path)
    return load_classifier(path)


def rows() -> dict[str, nn.Module]:
    """Title -> denoiser, guided in some way."""
    model = load(RUN / "checkpoints" / "last.ckpt").ema_denoiser
    early = load(RUN / "checkpoints" / "epoch=14.ckpt").ema_denoiser
    plain, noisy = Unconditional(model), noisy_classifier()
    off_the_shelf = CleanDigits(classifier(Digits(), recipe=Recipe(seed=1)))  # not the one that measures FID
    smooth = smoothed(off_the_shelf)

    def by_clean_classifier(net: nn.Module, **calibration: float) -> nn.Module:
        return ClassifierGuidance(plain, CleanClassifier(plain, net, 10, **calibration), 1.0)

    return {
        "no guidance": model,
        **{f"classifier-free, scale {s}": ClassifierFree(model, s) for s in (1.5, 2.0, 3.0)},
        "classifier-free, scale 3.0 for 0.2 < lam <= 3": ClassifierFree(model, 3.0, interval=(0.2, 3.0)),
        "the model after 15 of its 40 epochs": early,
        **{f"autoguidance by that, scale {s}": Autoguidance(model, early, s) for s in (1.5, 2.0, 3.0)},
        **{f"no labels, noisy classifier, scale {s}": ClassifierGuidance(plain, noisy, s) for s in (1.0, 2.0, 4.0)},
        "labels and noisy classifier, scale 1.0": ClassifierGuidance(model, noisy, 1.0),
        "no labels, clean classifier, scale 1.0": by_clean_classifier(off_the_shelf),
        "the same, smoothed (Softplus, beta 3)": by_clean_classifier(smooth),
        "the same, smoothed, marginal 0.5": by_clean_classifier(smooth, marginal=0.5),
        "the same, smoothed, marginal 0": by_clean_classifier(smooth, marginal=0.0),
        **{f"epsilon scaling, {b}": EpsilonScaling(model, b) for b in (0.98, 1.02)},
        "epsilon scaling, 0.98 + 0.001 lam": EpsilonScaling(model, 0.98, slope=0.001),
    }


def diversity(images: Tensor, labels: Tensor) -> float:
    """Mean distance of two images of a class: root mean square over pixels, in grey levels, averaged over classes."""
    pixels = images.flatten(1).float()
    distances = [torch.pdist(pixels[labels == k]).mean() for k in range(10)]
    return float(torch.stack(distances).mean()) / pixels.shape[1] ** 0.5


def main(nfe: int = 20, seed_sets: int = 2) -> None:
    """Prints and writes the table.

    Args:
        nfe: calls of the (guided) denoiser an image.
        seed_sets: sets of 1,797 seeds a row.
    """
    if ersde_lit(FIT):
        raise SystemExit("training failed")
    data = Digits()
    features = classifier(data)
    scores = Scores(features, reference_of(data, features))
    lines = ["| | read right by an SVM | FID of each seed set | distance within a class |", "|---|---:|---|---:|"]
    for title, denoiser in rows().items():
        fids, rights, distances = [], [], []
        for k in range(seed_sets):
            seeds = range(k * SAMPLES, (k + 1) * SAMPLES)
            blocks = list(generate(denoiser, default(nfe), seeds, nfe, batch_size=300))
            images = quantise(torch.cat([block.images for block in blocks]))
            labels = torch.cat([block.labels for block in blocks if block.labels is not None])
            scores.reset()
            scores.update(images)
            fids.append(scores.compute()["fid"])
            rights.append(read_right(images.numpy(), labels.numpy()))
            distances.append(diversity(images, labels))
        cells = ", ".join(f"{value:.2f}" for value in fids)
        mean = sum(rights) / seed_sets, sum(distances) / seed_sets
        lines.append(f"| {title} | {mean[0]:.1%} | {cells} | {mean[1]:.1f} |")
        print(lines[-1], flush=True)
    images_seen = load(RUN / "checkpoints" / "last.ckpt").images_seen
    train = data.split("train")
    lines.append(f"| real training images | | | {diversity(train.images, train.labels):.1f} |")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ersde-lit", "torch", "torchmetrics"))
    lines += [
        "",
        f"Default sampler, NFE {nfe}; {seed_sets} sets of {SAMPLES:,} seeds, labels drawn from them; FID to the 1,617 "
        f"training images in {features.description}. Distance: between two images of a class, root mean square over "
        "pixels in grey levels, mean over all pairs. A call of classifier-free guidance or autoguidance evaluates a "
        "network twice, one with a clean classifier twice and once backwards. The denoiser has 0.27 M parameters and "
        f"saw {images_seen:,} images, a fifth of them without label. {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {versions}.",
        "",
    ]
    path = Path(__file__).parent / "results" / "digits_guidance.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines))


if __name__ == "__main__":
    auto_cli(main)
