"""Residual blocks of DDPM++, NCSN++ and ADM (Karras et al. 2022), and the base class of these networks."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.networks.base import Network
from ersde_lit.networks.layers import Conv2d, Direction, GroupNorm, Linear, Resample, class_vectors, resolutions
from ersde_lit.networks.levels import decoder, encoder


class ResidualBlock(nn.Module):
    """skip_scale * (skip(x) + residual(x, embedding)), then the same with self-attention as the residual.

    Args:
        in_channels, out_channels, emb_channels: widths of x, of the result and of the embedding.
        direction: "up" or "down" where the block also changes the resolution.
        attention: whether self-attention over all positions follows.
        head_width: channels an attention head, at least; None for a single head.
        num_heads: how many attention heads; None as head_width says.
        dropout: probability inside the residual branch.
        skip_scale: of both sums; sqrt(1/2) keeps their variance.
        eps: of the normalisations.
        adaptive_scale: the embedding scales and shifts what the second normalisation returns (ADM), or it is added
            to what enters it (DDPM++).
        resample_proj: whether a skip that changes the resolution has a 1x1 convolution even at equal widths.
        resample_filter: taps of the resampling filter.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        direction: Direction | None = None,
        attention: bool = False,
        head_width: int | None = None,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        adaptive_scale: bool = True,
        resample_proj: bool = False,
        resample_filter: Sequence[int] = (1, 1),
        num_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.skip_scale, self.adaptive_scale = skip_scale, adaptive_scale
        self.norm0 = GroupNorm(in_channels, eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, direction, resample_filter)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1))
        self.norm1 = GroupNorm(out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = Conv2d(out_channels, out_channels, 3)

        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels or (direction and resample_proj):
            self.skip = Conv2d(in_channels, out_channels, 1, direction, resample_filter)
        elif direction:
            self.skip = Resample(direction, resample_filter)

        # as published, a block narrower than one head has none
        self.heads = (num_heads or (out_channels // head_width if head_width else 1)) if attention else 0
        if self.heads:
            if out_channels % self.heads:
                raise UserError(f"{out_channels} channels do not divide among {self.heads} attention heads")
            self.norm2 = GroupNorm(out_channels, eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        condition = self.affine(embedding)[:, :, None, None].to(h.dtype)
        if self.adaptive_scale:
            scale, shift = condition.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        else:
            h = self.norm1(h + condition)
        h = self.conv1(self.dropout(F.silu(h)))
        x = self.skip_scale * (self.skip(x) + h)
        return self.skip_scale * (x + self.attend(x)) if self.heads else x

    def attend(self, x: Tensor) -> Tensor:
        # contiguous: fused attention kernels want the channels of a head side by side
        q, k, v = rearrange(
            self.qkv(self.norm2(x)), "b (heads c qkv) h w -> qkv b heads (h w) c", heads=self.heads, qkv=3
        ).contiguous()
        return self.proj(
            rearrange(F.scaled_dot_product_attention(q, k, v), "b heads (h w) c -> b (heads c) h w", h=x.shape[2])
        )


class ResidualUNet(Network):
    """Base class: builds encoder `enc` and decoder `dec`, embeds the conditions in float32 at least, drops labels.

    Subclasses add `map_...`, which embed the conditions, and the way from the last block to the output.

    Args:
        stem: channels of the first convolution.
        widths, every_block_attends, block: see `networks.levels`.
        others: as in the published constructors.
    """

    map_augment: nn.Linear | None

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        label_dim: int,
        label_dropout: float,
        stem: int,
        widths: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        every_block_attends: bool,
        block: Callable[..., ResidualBlock],
    ) -> None:
        super().__init__()
        sides = resolutions(img_resolution, len(widths))
        self.image_shape = (in_channels, img_resolution, img_resolution)
        self.num_classes, self.multiple = label_dim, 2 ** (len(widths) - 1)
        self.label_dropout = label_dropout
        self.num_blocks = num_blocks
        self.levels = [f"{side}x{side}" for side in sides]

        plan = sides, widths, num_blocks, attn_resolutions
        self.enc, skips = encoder(*plan, Conv2d(in_channels, stem, 3), stem, block)
        self.dec = decoder(*plan, skips, block, every_block_attends)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """F: x [B, in_channels, H, W] -> [B, out_channels, H, W], in the dtype of x.

        Args:
            c_noise: [B].
            labels: int64 [B] in -1 .. label_dim - 1; None or -1 is unconditional.
            augment: [B, augment_dim]; None is no augmentation.

        Raises:
            ValueError: an augmentation vector for a network that takes none, whose augmentation would leak.
        """
        if augment is not None and self.map_augment is None:
            raise UserError(f"set the network's augment_dim to {augment.shape[1]}: it cannot be told of augmentation")
        if augment is None and self.map_augment is not None:  # zeros: DDP takes no weights without a gradient
            augment = x.new_zeros(len(x), self.map_augment.in_features)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would blur neighbouring noise levels
            dtype = torch.promote_types(x.dtype, torch.float32)
            embedding = self.embed(c_noise.to(dtype), labels, None if augment is None else augment.to(dtype))
        return self.body(x, embedding)

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """[B, emb_channels], after its last activation."""
        raise NotImplementedError

    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Encoder and decoder: x [B, in_channels, H, W] -> [B, out_channels, H, W]."""
        raise NotImplementedError

    def class_vectors(self, labels: Tensor | None, c_noise: Tensor) -> Tensor:
        """One-hot [B, label_dim], all zero without a label; in training mode some labels are dropped."""
        if labels is not None and self.training and self.label_dropout:
            labels = labels.masked_fill(torch.rand(labels.shape, device=labels.device) < self.label_dropout, -1)
        return class_vectors(labels, self.num_classes, c_noise)
