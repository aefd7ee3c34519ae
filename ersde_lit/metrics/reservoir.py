"""Random sample of images by hash, independent of batches, order and ranks."""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from ersde_lit.metrics.pooled import Pooled


def image_keys(images: Tensor) -> Tensor:
    """Hash int64 [n] of the bytes of uint8 images [n, C, H, W]: the same for copies, and hardly for others."""
    flat = images.flatten(1).long()
    return (flat * _weights(flat.shape[1]).to(flat.device)).sum(1)  # wraps around


@lru_cache(4)
def _weights(count: int) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(0))


class Drawn(NamedTuple):
    """Random sample, with the number of all images and of copies among them."""

    rows: Tensor  # [k, width], in the order of their keys, which is a random one
    num_images: int
    copies: int  # images that are, to the byte, the same as another


class Sample(Pooled):
    """Keeps a row for each of at most `limit` images, and of all images the key; added up over the ranks.

    Args:
        width: numbers a row; 0: nothing but keys.
        limit: rows kept, float32.
    """

    keys: list[Tensor]
    kept: list[Tensor]
    rows: list[Tensor]

    def __init__(self, width: int, limit: int, sync: bool = True, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(sync, group)
        self.width, self.limit = width, limit
        for name in ("keys", "kept", "rows") if width else ("keys",):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        super().reset()
        none = torch.empty(0, dtype=torch.long, device=self.device)  # ranks without images have something to send
        self.update(none, torch.empty(0, self.width, device=self.device))

    def update(self, keys: Tensor, rows: Tensor) -> None:
        """Adds images by their keys [n] and rows [n, width]."""
        self.keys = [torch.cat([*self.keys, keys])]  # one piece: many small ones keep the heap from being reused
        if self.width:
            self.kept = [torch.cat([*self.kept, keys])]
            self.rows.append(rows.float())
            if len(self.kept[0]) > 2 * self.limit:
                kept, rows = self._lowest()
                self.kept, self.rows = [kept], [rows]

    def compute(self) -> Drawn:
        keys = dim_zero_cat(self.keys)
        rows = self._lowest()[1] if self.width else torch.empty(len(keys), 0, device=keys.device)
        return Drawn(rows, len(keys), len(keys) - len(keys.unique()))

    def _lowest(self) -> tuple[Tensor, Tensor]:
        kept, rows = dim_zero_cat(self.kept), dim_zero_cat(self.rows)
        order = kept.argsort(stable=True)[: self.limit]
        return kept[order], rows[order]
