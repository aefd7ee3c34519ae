"""Encoder of ADM as a classifier of noisy images (Dhariwal & Nichol 2021, appendix H)."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.networks.base import Network
from ersde_lit.networks.layers import Conv2d, GroupNorm, Linear, PositionalAngles, resolutions
from ersde_lit.networks.levels import encoder
from ersde_lit.networks.residual_unet import ResidualBlock


class DhariwalClassifierEncoder(Network):
    """Encoder of `DhariwalUNet`, pooled by attention and mapped to class logits; the defaults are for 64x64.

    Args:
        img_resolution: height and width.
        in_channels: colour channels.
        label_dim: number of classes, at least 2.
        others: as for `DhariwalUNet`.

    Raises:
        ValueError: a resolution that cannot be halved so often, widths that cannot be normalised or cut into heads.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        label_dim: int,
        model_channels: int = 128,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.0,
        channels_per_head: int = 64,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if label_dim < 2:
            raise UserError(f"a classifier needs at least 2 classes, got {label_dim}")
        sides = resolutions(img_resolution, len(channel_mult))
        self.image_shape = (in_channels, img_resolution, img_resolution)
        self.num_classes = label_dim
        emb_channels = 4 * model_channels
        self.time_scale = time_scale
        self.map_noise = PositionalAngles(model_channels, endpoint=False)
        self.map_layer0 = Linear(model_channels, emb_channels)
        self.map_layer1 = Linear(emb_channels, emb_channels)

        block = partial(ResidualBlock, emb_channels=emb_channels, head_width=channels_per_head, dropout=dropout)
        widths = [round(model_channels * m) for m in channel_mult]
        first = Conv2d(in_channels, widths[0], 3)
        self.enc, (*_, c) = encoder(sides, widths, num_blocks, attn_resolutions, first, widths[0], block)
        side = sides[-1]
        self.enc[f"{side}x{side}_in0"] = block(c, c, attention=True)
        self.enc[f"{side}x{side}_in1"] = block(c, c)
        self.out_norm = GroupNorm(c)
        self.pool = AttentionPool(c, side, max(c // channels_per_head, 1), label_dim)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """Logits [B, num_classes] from x [B, C, H, W] and c_noise [B]; the rest, of other networks, is ignored."""
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would blur neighbouring noise levels
            angles = self.map_noise(self.time_scale * c_noise.to(torch.promote_types(x.dtype, torch.float32)))
            embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
            embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("conv") else layer(x, embedding)
        return self.pool(F.silu(self.out_norm(x)))


class AttentionPool(nn.Module):
    """Attention pooling with the spatial mean as query (Radford et al. 2021): [B, c, side, side] -> [B, out]."""

    def __init__(self, channels: int, side: int, heads: int, out_channels: int) -> None:
        super().__init__()
        if channels % heads:
            raise UserError(f"{channels} channels do not divide among {heads} attention heads")
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, side**2 + 1) / channels**0.5)
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([x.mean((2, 3))[:, :, None], x.flatten(2)], dim=2)
        tokens = rearrange(tokens + self.positional_embedding.to(x.dtype), "b c n -> b n c")
        q, k, v = rearrange(
            self.qkv(tokens), "b n (qkv heads c) -> qkv b heads n c", qkv=3, heads=self.heads
        ).contiguous()
        pooled = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # of the mean alone
        return self.proj(rearrange(pooled, "b heads 1 c -> b (heads c)"))


DhariwalEncoder = DhariwalClassifierEncoder  # the name until version 0.1, in checkpoints
