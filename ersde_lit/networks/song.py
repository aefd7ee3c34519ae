"""DDPM++ and NCSN++ (Song et al. 2021), with the keywords and state-dict names of EDM (Karras et al. 2022)."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.networks.layers import (
    Conv2d,
    ConvThenDownsample,
    FourierAngles,
    GroupNorm,
    Linear,
    PositionalAngles,
    Resample,
)
from ersde_lit.networks.residual_unet import ResidualBlock, ResidualUNet

EmbeddingType = Literal["positional", "fourier"]
EncoderType = Literal["standard", "skip", "residual"]
DecoderType = Literal["standard", "skip"]


class SongUNet(ResidualUNet):
    """DDPM++ by default; NCSN++ with "fourier", "residual", channel_mult_noise 2 and resample_filter [1, 3, 3, 1].

    Args:
        img_resolution: height and width.
        in_channels, out_channels: colour channels of input and output.
        label_dim: number of classes; 0 for an unconditional network.
        augment_dim: length of the augmentation vector; 0 for none.
        model_channels: the unit of all widths.
        channel_mult: width of each level, finest first; each level halves the resolution.
        channel_mult_emb: width of the embedding.
        num_blocks: residual blocks a level of the encoder (one more in the decoder).
        attn_resolutions: where encoder blocks, and the last decoder block, are followed by self-attention.
        dropout: probability inside residual blocks.
        label_dropout: probability, in training mode, of taking an image as unconditional, as published. The
            `label_dropout` of `DiffusionModule` does the same to the labels before they come here: set one of them.
        embedding_type: sinusoids of c_noise at geometric ("positional") or random ("fourier") frequencies.
        channel_mult_noise: width of these sinusoids.
        encoder_type: what else each level is given: nothing ("standard"), the downsampled image ("skip"), or the image
            after a downsampling path of its own convolutions ("residual").
        decoder_type: whether the output comes from the last level ("standard") or is a sum over all ("skip").
        resample_filter: taps of the resampling filter, an even number.

    Raises:
        ValueError: an unknown type, a resolution that cannot be halved so often, widths that cannot be normalised.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: EmbeddingType = "positional",
        channel_mult_noise: int = 1,
        encoder_type: EncoderType = "standard",
        decoder_type: DecoderType = "standard",
        resample_filter: Sequence[int] = (1, 1),
    ) -> None:
        for name, value, allowed in (
            ("embedding_type", embedding_type, EmbeddingType),
            ("encoder_type", encoder_type, EncoderType),
            ("decoder_type", decoder_type, DecoderType),
        ):
            if value not in get_args(allowed):
                raise UserError(f"unknown {name} {value!r}: choose one of {', '.join(get_args(allowed))}")
        widths = [model_channels * m for m in channel_mult]
        noise_channels, emb_channels = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        block = partial(
            ResidualBlock,
            emb_channels=emb_channels,
            dropout=dropout,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            adaptive_scale=False,
            resample_proj=True,
            resample_filter=resample_filter,
        )
        super().__init__(
            img_resolution,
            in_channels,
            label_dim,
            label_dropout,
            stem=model_channels,
            widths=widths,
            num_blocks=num_blocks,
            attn_resolutions=attn_resolutions,
            every_block_attends=False,
            block=block,
        )
        self.encoder_type, self.decoder_type = encoder_type, decoder_type

        fourier = embedding_type == "fourier"
        self.map_noise = FourierAngles(noise_channels) if fourier else PositionalAngles(noise_channels, endpoint=True)
        self.map_label = Linear(label_dim, noise_channels) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels)
        self.map_layer1 = Linear(emb_channels, emb_channels)

        c_image = in_channels
        for level, c in zip(self.levels[1:], widths[:-1], strict=True):  # a level is entered at its predecessor's width
            if encoder_type == "skip":
                self.enc[f"{level}_aux_down"] = Resample("down", resample_filter)
                self.enc[f"{level}_aux_skip"] = Conv2d(c_image, c, 1)
            elif encoder_type == "residual":
                self.enc[f"{level}_aux_residual"] = ConvThenDownsample(c_image, c, 3, resample_filter)
                c_image = c
        for level, c in zip(self.levels, widths, strict=True):
            if decoder_type == "skip" and level != self.levels[-1]:
                self.dec[f"{level}_aux_up"] = Resample("up", resample_filter)
            if decoder_type == "skip" or level == self.levels[0]:
                self.dec[f"{level}_aux_norm"] = GroupNorm(c, eps=1e-6)
                self.dec[f"{level}_aux_conv"] = Conv2d(c, out_channels, 3)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier uniform, no biases; what closes a residual branch or the network starts at almost zero."""
        for name, module in self.named_modules():
            if isinstance(module, Linear | Conv2d):
                closes = name.endswith(("conv1", "proj", "aux_conv"))
                gain = 1e-5 if closes else math.sqrt(0.2) if name.endswith("qkv") else 1.0
                nn.init.xavier_uniform_(module.weight, gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        angles = self.map_noise(c_noise)
        embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
        if self.map_label is not None:
            embedding = embedding + self.map_label(self.class_vectors(labels, c_noise) * math.sqrt(self.num_classes))
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        finest, coarsest = self.levels[0], self.levels[-1]
        skips, image = [], x
        for level in self.levels:
            x = self.enc[f"{level}_conv"](x) if level == finest else self.enc[f"{level}_down"](x, embedding)
            if level != finest and self.encoder_type == "skip":
                image = self.enc[f"{level}_aux_down"](image)
                x = x + self.enc[f"{level}_aux_skip"](image)
            elif level != finest and self.encoder_type == "residual":
                x = image = math.sqrt(0.5) * (x + self.enc[f"{level}_aux_residual"](image))
            skips.append(x)
            for i in range(self.num_blocks):
                skips.append(x := self.enc[f"{level}_block{i}"](x, embedding))

        for level in reversed(self.levels):
            if level == coarsest:
                x = self.dec[f"{level}_in1"](self.dec[f"{level}_in0"](x, embedding), embedding)
            else:
                x = self.dec[f"{level}_up"](x, embedding)
            for i in range(self.num_blocks + 1):
                x = self.dec[f"{level}_block{i}"](torch.cat([x, skips.pop()], dim=1), embedding)
            if f"{level}_aux_conv" in self.dec:
                out = self.dec[f"{level}_aux_conv"](F.silu(self.dec[f"{level}_aux_norm"](x)))
                image = self.dec[f"{level}_aux_up"](image) + out if f"{level}_aux_up" in self.dec else out
        return image
