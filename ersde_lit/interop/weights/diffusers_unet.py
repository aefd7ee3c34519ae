"""Networks that wrap diffusers' UNet2DModel."""

import inspect
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ersde_lit.errors import UserError, needs_extra
from ersde_lit.networks import Network


class DiffusersUNet(Network):
    """diffusers' UNet2DModel, without predicted variances.

    Args:
        config: the arguments of UNet2DModel; sample_size is needed.
        steps: of the discrete process; the network's time input is the index of the step.
    """

    _embeddings: tuple[str, ...] = ("positional", "learned")  # supported values of time_embedding_type

    def __init__(self, config: dict[str, Any], steps: int = 1000) -> None:
        super().__init__()
        with needs_extra("diffusers", "this network, a UNet2DModel,"):
            from diffusers import UNet2DModel
        unknown = config.keys() - inspect.signature(UNet2DModel.__init__).parameters.keys()
        if unknown:
            raise UserError(f"UNet2DModel does not know {min(unknown)[:40]!r}: is diffusers too old for this network?")
        classes = config.get("num_class_embeds")
        match config.get("in_channels", 3), config.get("sample_size"):
            case (int(channels), [int(height), int(width)]) | (int(channels), int(height) as width):
                self.image_shape = (channels, height, width)
            case channels, size:
                raise UserError(f"config needs sample_size and in_channels, got {size} and {channels}"[:120])
        if config.get("class_embed_type") is not None:
            raise UserError("a UNet2DModel with class_embed_type takes no classes but other conditions")
        if (embedding := config.get("time_embedding_type", "positional")) not in self._embeddings:
            raise UserError(
                f"a UNet2DModel with time_embedding_type {str(embedding)[:40]!r} does not fit its scheduler's process, "
                f"only one with {' or '.join(self._embeddings)}"
            )
        if embedding == "learned" and config.get("num_train_timesteps") != steps:
            raise UserError(
                f"its embedding is of num_train_timesteps {config.get('num_train_timesteps')}, not {steps}"[:120]
            )
        self.num_classes = classes or 0
        self.scale = (steps - 1) / 999  # preconditionings count to 999
        self.unet = cast(Any, UNet2DModel(**config))
        factor = 2 ** (len(self.unet.down_blocks) - 1)
        if height % factor or width % factor:
            raise UserError(f"sample_size {config['sample_size']} is no multiple of {factor}, which its levels need")
        if classes:
            self.unet.class_embedding = Classes(classes, self.unet.class_embedding.embedding_dim)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """F as of `Network`; labels of -1 or None are unconditional, and augment must be None."""
        return self._call(x, (c_noise * self.scale).round().long(), labels, augment)

    def _call(self, x: Tensor, told: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        if augment is not None:
            raise UserError("a UNet2DModel has no input for augmentation: leave augment out")
        if self.num_classes and labels is None:
            labels = told.new_full((len(x),), -1).long()
        known = {"class_labels": labels} if self.num_classes else {}
        return self.unet(x, told, return_dict=False, **known)[0][:, : self.image_shape[0]]


class DiffusersScoreUNet(DiffusersUNet):
    """diffusers' UNet2DModel of a ScoreSdeVePipeline: the score at sigma of images in [0, 1].

    Our images are in [-1, 1], where lam is 2 sigma: the "ve" preconditioning's ln(lam / 2) is ln(sigma).

    Args:
        config: as of `DiffusersUNet`.
    """

    _embeddings = ("fourier", "positional")

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        sigma = c_noise.exp()
        return sigma.view(-1, 1, 1, 1) * self._call((x + 1) / 2, sigma, labels, augment)


class Classes(nn.Embedding):
    """Embedding of int64 labels [B], which is zero for -1."""

    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels.clamp(min=0), self.weight) * (labels >= 0)[:, None].to(self.weight.dtype)
