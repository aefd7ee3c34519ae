"""The sizes that the weights of guided-diffusion (Dhariwal & Nichol 2021) tell of their network."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ersde_lit.errors import UserError


@dataclass(frozen=True)
class Sizes:
    """What the shapes of the weights say.

    Attributes:
        width: guided-diffusion's num_channels.
        mult: widths of the levels in units of it, finest first.
        blocks: num_res_blocks.
        attending: levels with attention.
        classes: 0 for an unconditional network.
        channels, outputs: of images in, and out with their variances; logits of a classifier.
        classifier: whether it is the half that classifies.
        pool_side: pixels along a side of what a classifier pools.
    """

    width: int
    mult: tuple[float, ...]
    blocks: int
    attending: tuple[int, ...]
    classes: int
    channels: int
    outputs: int
    classifier: bool
    pool_side: int = 0


def sizes_of(state: Mapping[str, Tensor]) -> Sizes:
    """Raises ValueError where the weights are not those of guided-diffusion's U-Net or classifier."""
    if "time_embed.0.weight" not in state or "input_blocks.0.0.weight" not in state:
        raise UserError("its weights are not those of guided-diffusion: it has no time_embed.0 or input_blocks.0.0")
    if any(name.startswith("input_blocks.") and ".op." in name for name in state):
        raise UserError("it was trained with --resblock_updown False, which the network here cannot express")
    numbers = {name.split(".")[1] for name in state if name.startswith("input_blocks.")}
    if not all(number.isdecimal() and len(number) < 4 for number in numbers):
        raise UserError("its weights have names that are not guided-diffusion's")
    outer = sorted(map(int, numbers))
    classifier = "out.2.positional_embedding" in state
    if not classifier and "out.2.weight" not in state:
        raise UserError("it is neither a denoiser nor a classifier with --classifier_pool attention")
    levels = _levels(state, len(outer), classifier)
    if outer != list(range(len(outer))) or not levels or len(outer) % levels or len(outer) // levels < 2:
        raise UserError(f"its {len(outer)} input_blocks do not fall into {levels} equal levels")
    blocks = len(outer) // levels - 1
    width = _shape(state, "time_embed.0.weight")[1]
    firsts = [level * (blocks + 1) + 1 for level in range(levels)]
    widths = [_shape(state, f"input_blocks.{i}.0.out_layers.3.weight")[0] for i in firsts]
    if _shape(state, "input_blocks.1.0.emb_layers.1.weight")[0] != 2 * widths[0]:
        raise UserError("it was trained with --use_scale_shift_norm False, which the network here cannot express")
    if not width or min(widths) < 128 or any(w % 32 for w in widths):
        raise UserError(f"its widths {widths} are not multiples of 32 from 128 on: other groups are normalised here")
    out = _shape(state, "out.2.c_proj.weight" if classifier else "out.2.weight")
    side = round(max(_shape(state, "out.2.positional_embedding")[1] - 1, 0) ** 0.5) if classifier else 0
    mult = tuple(w // width if w % width == 0 else w / width for w in widths)
    attending = tuple(level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in state)
    classes = _shape(state, "label_emb.weight")[0] if "label_emb.weight" in state else 0
    channels = _shape(state, "input_blocks.0.0.weight")[1]
    return Sizes(width, mult, blocks, attending, classes, channels, out[0], classifier, side)


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Of a weight of at least two axes."""
    if name not in state or state[name].ndim < 2:
        raise UserError(f"its weight {name!r} is missing, or none")
    return tuple(state[name].shape)


def _levels(state: Mapping[str, Tensor], outer: int, classifier: bool) -> int:
    if not classifier:  # between two levels of the decoder is a residual block that upsamples
        return 1 + sum(
            name.startswith("output_blocks.") and not name.startswith(f"output_blocks.{name.split('.')[1]}.0.")
            for name in state
            if name.endswith(".in_layers.0.weight")
        )
    blocks = 0  # at the coarsest level all blocks attend, and the one that leads there does not
    while f"input_blocks.{outer - 1 - blocks}.1.qkv.weight" in state:
        blocks += 1
    return outer // (blocks + 1)
