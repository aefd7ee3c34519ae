"""scikit-learn's handwritten digits, which need no download."""

import torch

from ersde_lit.data.base import ImageDataModule, Split
from ersde_lit.errors import UserError


class Digits(ImageDataModule):
    """1,797 real 8x8 grey digits (Alpaydin and Kaynak, 1998), 16 grey levels mapped to uint8 round(v * 255 / 16).

    `val_size` images, drawn once by `seed` with every class in its share, are held out as "val" and "test" (the same
    images); all others are "train", which is what FID compares with. Mirrored digits are other signs: no flips.

    Args:
        batch_size: images a batch.
        val_size: images held out, 10 to 1000; 180 leave 1,617 to train on.
        seed: which ones.
    """

    image_shape = (1, 8, 8)
    num_classes = 10
    class_names = tuple("0123456789")

    def __init__(self, batch_size: int = 128, val_size: int = 180, seed: int = 0) -> None:
        super().__init__(batch_size)
        if not 10 <= val_size <= 1000:
            raise UserError(f"val_size must be between 10 and 1000, not {val_size}")
        self.val_size, self.seed = val_size, seed

    def load(self) -> dict[str, Split]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        values, targets = load_digits(return_X_y=True)
        images = torch.from_numpy(values).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
        labels = torch.from_numpy(targets).long()
        train, held_out = train_test_split(
            torch.arange(len(labels)), test_size=self.val_size, stratify=targets, random_state=self.seed
        )
        val = Split(images[held_out], labels[held_out])
        return {"train": Split(images[train], labels[train]), "val": val, "test": val}
