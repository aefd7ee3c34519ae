"""Network: base class of raw networks F(x, c_noise, labels), with a plain-data record of their arguments."""

import inspect
from typing import Any

from torch import Tensor, nn

from ersde_lit.errors import UserError

PROBABILITIES = ("dropout", "label_dropout")
NUMBERS = ("num_classes", "label_dim", "augment_dim")
SIZES = (
    *("img_resolution", "in_channels", "out_channels", "img_channels", "model_channels", "width"),
    *("channel_mult_emb", "channel_mult_noise", "channels_per_head", "num_heads"),
    *("num_blocks", "blocks", "head_width", "patch_size"),
)


class Network(nn.Module):
    """Base class of raw networks F; a `Denoiser` wraps one into E[x0 | y].

    Attributes:
        image_shape: (C, H, W) of the images it takes and returns.
        num_classes: number of class labels; 0 for an unconditional network.
        multiple: what the sides of other images than these, which it takes too, are multiples of.
        spec: {"class_path": ..., "init_args": ...}, plain data that rebuilds the architecture (not the weights).
            Constructor arguments of subclasses must therefore be plain data too: numbers, strings, lists.

    Raises:
        UserError: an argument out of the range that its name has in all networks (`PROBABILITIES`, `NUMBERS`, `SIZES`).
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    multiple: int = 1
    spec: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Network":
        network = super().__new__(cls)
        # partial, because copy.deepcopy() calls __new__ without arguments and fills in the state afterwards
        bound = inspect.signature(cls.__init__).bind_partial(network, *args, **kwargs)
        init_args = dict(list(bound.arguments.items())[1:])
        for name, value in init_args.items():
            _check(name, value)
        network.spec = {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}
        return network

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """F: x [B, C, H, W], c_noise [B], labels int64 [B] (-1 = unconditional), augment [B, k] -> [B, C, H, W]."""
        raise NotImplementedError


def _check(name: str, value: Any) -> None:
    """Raises UserError where an argument of a network is out of the range that its name has in all of them."""
    if not isinstance(value, int | float):
        return
    if name in PROBABILITIES and not 0 <= value <= 1:
        raise UserError(f"{name} is a probability, got {value}")
    if (name in NUMBERS and value < 0) or (name in SIZES and value <= 0):
        raise UserError(f"{name} must {'not be negative' if name in NUMBERS else 'be positive'}, got {value}")
