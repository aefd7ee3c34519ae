"""Data sets, a network, a model and a trainer small enough to train in a test."""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from ersde_lit.data import ImageDataModule, Split
from ersde_lit.denoisers import EDA, NoiseLaw
from ersde_lit.networks import UNet
from ersde_lit.training import DiffusionModule


class Noise(pl.LightningDataModule):
    """32 random 4x4 images of 3 classes."""

    image_shape, num_classes = (1, 4, 4), 3

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.batch_size = batch_size
        self.images = torch.randn(32, 1, 4, 4, generator=generator)

    def loader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.images, torch.arange(32) % 3), self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


class Pictures(ImageDataModule):
    """44 random 4x4 images of 3 classes, with all that our own data sets do: 5 steps of 8 an epoch, in seeded order."""

    image_shape, num_classes = (1, 4, 4), 3

    def load(self) -> dict[str, Split]:
        generator, shape = torch.Generator().manual_seed(0), (44, *self.image_shape)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        split = Split(images, torch.arange(44) % 3)
        return {"train": split, "val": split, "test": split}


class Larger(Pictures):
    """Pictures of 16x16."""

    image_shape = (1, 16, 16)


def network(**changes) -> UNet:
    arguments = {"image_shape": (1, 4, 4), "num_classes": 3, "width": 8, "multipliers": (1,), "blocks": 1,
                 "attention": (), "head_width": 8}  # fmt: skip
    return UNet(**{**arguments, **changes})


def restores(noise: NoiseLaw) -> DiffusionModule:
    """A model that restores `Larger`: raw weights as they begin, which predict no noise, averaged ones at random."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        unconditional = network(image_shape=Larger.image_shape, num_classes=0)
        made = DiffusionModule(unconditional, EDA(), "eda", "eda", noise=noise)
        for weight in made.ema_denoiser.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.05)
    return made


def trainer(folder, **changes) -> pl.Trainer:
    arguments = {"default_root_dir": folder, "max_epochs": 2, "logger": False, "enable_checkpointing": False,
                 "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}  # fmt: skip
    return pl.Trainer(**{**arguments, **changes})
