"""EDM2's U-Net (Karras et al. 2024, arXiv:2312.02696, configuration G), with its state-dict names and keywords."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.networks.base import Network
from ersde_lit.networks.layers import Direction, class_vectors, resample, resolutions, separable_filter
from ersde_lit.networks.levels import decoder, encoder
from ersde_lit.networks.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalise


class EDM2Block(nn.Module):
    """Residual block with the embedding as a factor of each channel, then cosine self-attention (figure 21).

    Args:
        in_channels, out_channels, emb_channels: widths of x, of the result and of the embedding.
        decoder: whether it belongs to the decoder, where only the skip has a 1x1 convolution. In the encoder that
            comes before both branches, followed by a normalisation of each pixel's channels.
        direction: "up" or "down" where the block also changes the resolution.
        attention: whether self-attention over all positions follows.
        others: as for `EDM2UNet`.
    """

    kernel: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        decoder: bool,
        direction: Direction | None = None,
        attention: bool = False,
        resample_filter: Sequence[int] = (1, 1),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float = 256,
    ) -> None:
        super().__init__()
        self.decoder, self.direction = decoder, direction
        self.dropout, self.clip_act = dropout, clip_act
        self.res_balance, self.attn_balance = res_balance, attn_balance
        self.heads = out_channels // channels_per_head if attention else 0
        if direction is not None:
            self.register_buffer("kernel", separable_filter(resample_filter), persistent=False)
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(in_channels if decoder else out_channels, out_channels, 3)
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, 3)
        self.conv_skip = MPConv(in_channels, out_channels, 1) if in_channels != out_channels else None
        if self.heads:
            if out_channels % self.heads:
                raise UserError(f"{out_channels} channels do not divide among {self.heads} attention heads")
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1)
            self.attn_proj = MPConv(out_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.direction is not None:
            x = resample(x, self.kernel, self.direction)
        skip = x if self.conv_skip is None else self.conv_skip(x)
        if not self.decoder:
            x = skip = normalise(skip, dim=1)
        scale = self.emb_linear(embedding, self.emb_gain)[:, :, None, None] + 1
        h = mp_silu(self.conv_res0(mp_silu(x)) * scale.to(x.dtype))
        h = self.conv_res1(F.dropout(h, self.dropout, self.training))
        x = mp_sum(skip, h, self.res_balance)
        if self.heads:
            x = mp_sum(x, self.attend(x), self.attn_balance)
        return x.clamp(-self.clip_act, self.clip_act)

    def attend(self, x: Tensor) -> Tensor:
        """Attention whose queries, keys and values have magnitude 1 at each position."""
        vectors = rearrange(self.attn_qkv(x), "b (heads c qkv) h w -> qkv b heads (h w) c", heads=self.heads, qkv=3)
        q, k, v = normalise(vectors, dim=-1).contiguous()
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.attn_proj(rearrange(attended, "b heads (h w) c -> b (heads c) h w", h=x.shape[2]))


class EDM2UNet(Network):
    """EDM2's U-Net; the defaults are size S for 64x64 images.

    Its weights have magnitude 1 and are normalised again in each training step (see `MPConv`): train it without weight
    decay, at a rate that falls (`AdamWConfig.constant`), as `configs/imagenet64_edm2_s.yaml` does.

    Args:
        img_resolution, img_channels: of the images.
        label_dim: number of classes; 0 for none.
        model_channels: width of the finest level at `channel_mult` 1: XS 128, S 192, M 256, L 320, XL 384.
        channel_mult: width of each level, finest first; each but the first halves the resolution.
        channel_mult_noise: width of the noise level's Fourier features over model_channels; None: as the finest level.
        channel_mult_emb: width of the embedding over model_channels; None: as the widest level.
        num_blocks: residual blocks a level of the encoder; the decoder has one more.
        attn_resolutions: where blocks, but those that change the resolution, end with self-attention; the decoder's
            first block always does, its second never.
        label_balance, concat_balance, res_balance, attn_balance: shares t in `mp_sum` and `mp_cat` of the label's
            embedding, the encoder's skips, the residual branches, the attention.
        dropout: probability inside the residual branches.
        clip_act: largest absolute value of a block's output, so that half precision does not overflow.
        channels_per_head: of attention.
        resample_filter: taps of the resampling filter along one axis.

    Raises:
        ValueError: a resolution that cannot be halved so often, or widths that cannot be cut into heads.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_channels: int = 192,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        channel_mult_noise: float | None = None,
        channel_mult_emb: float | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float = 256,
        channels_per_head: int = 64,
        resample_filter: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        sides = resolutions(img_resolution, len(channel_mult))
        self.image_shape, self.num_classes = (img_channels, img_resolution, img_resolution), label_dim
        self.multiple = 2 ** (len(channel_mult) - 1)
        self.label_balance, self.concat_balance = label_balance, concat_balance
        widths = [int(model_channels * m) for m in channel_mult]
        noise = widths[0] if channel_mult_noise is None else int(model_channels * channel_mult_noise)
        emb = max(widths) if channel_mult_emb is None else int(model_channels * channel_mult_emb)
        block = partial(
            EDM2Block,
            emb_channels=emb,
            resample_filter=resample_filter,
            channels_per_head=channels_per_head,
            dropout=dropout,
            res_balance=res_balance,
            attn_balance=attn_balance,
            clip_act=clip_act,
        )
        self.emb_fourier = MPFourier(noise)
        self.emb_noise = MPConv(noise, emb)
        self.emb_label = MPConv(label_dim, emb) if label_dim else None

        plan = sides, widths, num_blocks, attn_resolutions
        first = MPConv(img_channels + 1, widths[0], 3)
        self.enc, skips = encoder(*plan, first, widths[0], partial(block, decoder=False))
        self.dec = decoder(*plan, skips, partial(block, decoder=True))
        self.out_conv = MPConv(widths[0], img_channels, 3)
        self.out_gain = nn.Parameter(torch.zeros([]))

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """F: x [B, C, H, W] of magnitude 1, c_noise [B], labels int64 [B] (-1 = unconditional) -> [B, C, H, W].

        Raises:
            ValueError: augment conditions, which this network cannot be told of.
        """
        if augment is not None:
            raise UserError("EDM2UNet cannot be told of augmentation: leave augment out")
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would blur neighbouring noise levels
            embedding = self.embed(c_noise.to(torch.promote_types(x.dtype, torch.float32)), labels)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # in place of biases
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("conv") else layer(x, embedding)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(mp_cat(x, skips.pop(), self.concat_balance) if "block" in name else x, embedding)
        return self.out_conv(x, self.out_gain)

    def embed(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """[B, emb_channels]; without a label its class vector is zero."""
        embedding = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            vectors = class_vectors(labels, self.num_classes, c_noise) * self.num_classes**0.5
            embedding = mp_sum(embedding, self.emb_label(vectors), self.label_balance)
        return mp_silu(embedding)
