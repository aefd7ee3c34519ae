"""ADM (Dhariwal & Nichol 2021), with the keywords and state-dict names of EDM (Karras et al. 2022)."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersde_lit.networks.layers import Conv2d, GroupNorm, Linear, PositionalAngles
from ersde_lit.networks.residual_unet import ResidualBlock, ResidualUNet


class DhariwalUNet(ResidualUNet):
    """ADM; the defaults are the published size for 64x64 images.

    Args:
        channel_mult: width of each level, finest first, as for `SongUNet`; fractions of whole widths are allowed.
        attn_resolutions: where all blocks but the resampling ones are followed by self-attention.
        channels_per_head: of attention; as published, a block that is narrower has a single head.
        num_heads: of attention, the same at all widths, as in the published ADM for 128x128; None as that says.
        time_scale: factor of c_noise, for weights that were told other numbers than those here, 0 to 999.
        others: as for `SongUNet`.

    Raises:
        ValueError: a resolution that cannot be halved so often, widths that cannot be normalised or cut into heads.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        channels_per_head: int = 64,
        num_heads: int | None = None,
        time_scale: float = 1.0,
    ) -> None:
        widths = [round(model_channels * m) for m in channel_mult]
        emb_channels = model_channels * channel_mult_emb
        super().__init__(
            img_resolution,
            in_channels,
            label_dim,
            label_dropout,
            stem=widths[0] if widths else 0,
            widths=widths,
            num_blocks=num_blocks,
            attn_resolutions=attn_resolutions,
            every_block_attends=True,
            block=partial(
                ResidualBlock,
                emb_channels=emb_channels,
                head_width=channels_per_head,
                num_heads=num_heads,
                dropout=dropout,
            ),
        )
        self.time_scale = time_scale
        self.map_noise = PositionalAngles(model_channels, endpoint=False)
        self.map_augment = Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels)
        self.map_layer1 = Linear(emb_channels, emb_channels)
        self.map_label = Linear(label_dim, emb_channels, bias=False) if label_dim else None
        self.out_norm = GroupNorm(widths[0])
        self.out_conv = Conv2d(widths[0], out_channels, 3)
        self._initialise()

    def _initialise(self) -> None:
        """PyTorch's own, but what closes a residual branch or the network starts at zero, and labels at N(0, 1)."""
        for name, module in self.named_modules():
            if name.endswith(("conv1", "proj", "out_conv", "map_augment")):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        angles = self.map_noise(self.time_scale * c_noise)
        embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment)
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None:
            embedding = embedding + self.map_label(self.class_vectors(labels, c_noise))
        return F.silu(embedding)

    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("conv") else layer(x, embedding)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(torch.cat([x, skips.pop()], dim=1) if "block" in name else x, embedding)
        return self.out_conv(F.silu(self.out_norm(x)))
