"""A data set, a network and a trainer small enough to train in a test."""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from ersde_lit.data import ImageDataModule, Split
from ersde_lit.networks import UNet


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
        images = torch.randint(0, 256, (44, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        split = Split(images, torch.arange(44) % 3)
        return {"train": split, "val": split, "test": split}


def network(**changes) -> UNet:
    arguments = {"image_shape": (1, 4, 4), "num_classes": 3, "width": 8, "multipliers": (1,), "blocks": 1,
                 "attention": (), "head_width": 8}  # fmt: skip
    return UNet(**{**arguments, **changes})


def trainer(folder, **changes) -> pl.Trainer:
    arguments = {"default_root_dir": folder, "max_epochs": 2, "logger": False, "enable_checkpointing": False,
                 "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}  # fmt: skip
    return pl.Trainer(**{**arguments, **changes})
