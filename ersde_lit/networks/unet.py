"""Small U-Net: residual blocks, self-attention, one skip connection per block."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.networks.base import Network


class UNet(Network):
    """U-Net denoising network for small images (0.5 to 4 million parameters at the widths in `configs/`).

    Images whose sides are not a multiple of patch_size * 2^(levels - 1) are zero-padded inside and cropped again, so
    a 28x28 network takes and returns 28x28.

    Args:
        image_shape: (C, H, W).
        num_classes: number of class labels; 0 for an unconditional network.
        width: channels at the finest level.
        multipliers: channels of each level, finest first, in units of `width`; each level halves the resolution.
        blocks: residual blocks a level on the way down (one more on the way up).
        attention: levels (0 = finest) whose blocks are followed by self-attention; the middle, which is as wide as the
            coarsest level, always has it.
        head_width: channels an attention head: divides the channels of the coarsest level and of those in `attention`.
        patch_size: pixels along the side of a patch that is folded into channels on entry (1 = none): a 4-fold
            cheaper network at patch_size 2.
        dropout: probability inside residual blocks.
        augment_dim: conditions by which it is told how an image was augmented; none given means as it was.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int = 0,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (2,),
        head_width: int = 32,
        patch_size: int = 1,
        dropout: float = 0.0,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        if len(image_shape) != 3:
            raise UserError(f"image_shape is (channels, height, width), got {tuple(image_shape)}")
        if width % 8:
            raise UserError(f"width must be a multiple of 8 (normalisation groups), got {width}")
        if not multipliers or min(multipliers) < 1:
            raise UserError("multipliers are positive, and there is one level at least")
        if not set(attention) <= set(range(len(multipliers))):
            raise UserError(f"attention names levels 0 .. {len(multipliers) - 1}, got {list(attention)}")
        channels, height, side = image_shape
        self.image_shape = (channels, height, side)
        self.num_classes = num_classes
        self.width = width
        self.patch_size = patch_size
        self.padded_to = patch_size * 2 ** (len(multipliers) - 1)

        embed = 4 * width
        self.embed_noise = nn.Sequential(nn.Linear(width, embed), nn.SiLU(), nn.Linear(embed, embed))
        self.embed_label = nn.Linear(num_classes, embed, bias=False) if num_classes else None
        self.embed_augment = nn.Linear(augment_dim, embed, bias=False) if augment_dim else None

        def block(c_in: int, c_out: int, level: int) -> Block:
            return Block(c_in, c_out, embed, dropout, head_width if level in attention else None)

        widths = [width * m for m in multipliers]
        self.enter = nn.Conv2d(channels * patch_size**2, width, 3, padding=1)
        skips, c = [width], width
        self.down = nn.ModuleList()
        for level, c_out in enumerate(widths):
            if level > 0:
                self.down.append(Downsample(c))
                skips.append(c)
            for _ in range(blocks):
                self.down.append(block(c, c_out, level))
                skips.append(c := c_out)

        self.middle = nn.ModuleList([Block(c, c, embed, dropout, head_width), Block(c, c, embed, dropout, None)])

        self.up = nn.ModuleList()
        for level, c_out in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(c + skips.pop(), c_out, level))
                c = c_out
            if level > 0:
                self.up.append(Upsample(c))
        self.leave = nn.Sequential(norm(c), nn.SiLU(), zeroed(nn.Conv2d(c, channels * patch_size**2, 3, padding=1)))

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """F: x [B, C, H, W], c_noise [B], labels int64 [B] in -1 .. num_classes - 1 -> [B, C, H, W].

        Raises:
            ValueError: augment conditions for a network of augment_dim 0: its samples would come out augmented.
        """
        if augment is not None and self.embed_augment is None:
            raise UserError("this network cannot be told of augmentation: set its augment_dim, or leave augment out")
        height, side = x.shape[-2:]
        x = F.pad(x, (0, -side % self.padded_to, 0, -height % self.padded_to))
        x = self.enter(F.pixel_unshuffle(x, self.patch_size))

        embedding = self.embed_noise(positional(c_noise, self.width).to(x.dtype))
        if self.embed_label is not None and labels is not None:
            # one_hot of label + 1 without its first column: label -1 becomes a row of zeros
            embedding = embedding + self.embed_label(F.one_hot(labels + 1, self.num_classes + 1)[:, 1:].to(x.dtype))
        if self.embed_augment is not None:
            if augment is None:  # zeros, rather than weights without a gradient, which DDP does not take
                augment = x.new_zeros(len(x), self.embed_augment.in_features)
            embedding = embedding + self.embed_augment(augment.to(x.dtype))
        embedding = F.silu(embedding)

        skips = [x]
        for layer in self.down:
            skips.append(x := layer(x, embedding))
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.up:
            x = layer(x, embedding) if isinstance(layer, Upsample) else layer(torch.cat([x, skips.pop()], 1), embedding)
        return F.pixel_shuffle(self.leave(x), self.patch_size)[..., :height, :side]


class Block(nn.Module):
    """x + conv(modulated norm(conv(norm(x)))), then self-attention where `head_width` is given."""

    def __init__(self, c_in: int, c_out: int, embed: int, dropout: float, head_width: int | None) -> None:
        super().__init__()
        self.norm_in, self.conv_in = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.modulate = nn.Linear(embed, 2 * c_out)
        self.norm_out, self.conv_out = norm(c_out), zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.attention = Attention(c_out, head_width) if head_width else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_out(self.dropout(F.silu(torch.addcmul(shift, self.norm_out(h), 1 + scale))))
        return self.attention(self.skip(x) + h)


class Attention(nn.Module):
    """x + self-attention over all positions."""

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        if channels % head_width:
            raise UserError(
                f"self-attention, which the middle of the network always has, needs channels ({channels}) to be a "
                f"multiple of head_width ({head_width})"
            )
        self.heads = channels // head_width
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "b (qkv heads c) h w -> qkv b heads (h w) c", qkv=3, heads=self.heads
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.project(rearrange(attended, "b heads (h w) c -> b (heads c) h w", h=x.shape[2]))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 8, channels)


def zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    """Starts a residual branch (or the whole network) at zero output."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def positional(c_noise: Tensor, width: int) -> Tensor:
    """Sinusoids of c_noise [B] at `width` / 2 frequencies from 1 down to 1e-4 (Vaswani et al. 2017) -> [B, width]."""
    k = torch.arange(width // 2, dtype=torch.float32, device=c_noise.device)
    frequencies = torch.exp(k * (-math.log(1e4) / (width // 2)))
    angles = c_noise.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
