"""Layout of guided-diffusion's weights: the sizes that their shapes tell, and their names in our networks.

The rows of an attention's `qkv` differ in order: legacy [head][qkv][channel], "new" [qkv][head][channel], ours
[head][channel][qkv].
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from einops import rearrange
from torch import Tensor

from ersde_lit.errors import UserError

_RESIDUAL = {
    "in_layers.0": "norm0",
    "in_layers.2": "conv0",
    "emb_layers.1": "affine",
    "out_layers.0": "norm1",
    "out_layers.3": "conv1",
    "skip_connection": "skip",
}
_ATTENTION = {"norm": "norm2", "qkv": "qkv", "proj_out": "proj"}
_ENDS = {"time_embed.0": "map_layer0", "time_embed.2": "map_layer1", "label_emb": "map_label", "out.0": "out_norm"}
_POOL = {"out.2": "pool", "out.2.qkv_proj": "pool.qkv", "out.2.c_proj": "pool.proj"}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network, read off the shapes of its weights.

    Attributes:
        width: guided-diffusion's num_channels.
        mult: widths of the levels in units of it, finest first.
        blocks: num_res_blocks.
        attending: levels with attention.
        classes: 0 if unconditional.
        channels, outputs: of the input, and of the output with its variances, or a classifier's logits.
        classifier: whether it is a classifier.
        pool_side: pixels along a side of the feature map that a classifier pools.
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
    """Sizes of guided-diffusion's U-Net or classifier; UserError if the weights are of another network."""
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
        raise UserError(f"its widths {widths} are not multiples of 32 from 128 on: its groups of normalisation differ")
    out = _shape(state, "out.2.c_proj.weight" if classifier else "out.2.weight")
    side = round(max(_shape(state, "out.2.positional_embedding")[1] - 1, 0) ** 0.5) if classifier else 0
    mult = tuple(w // width if w % width == 0 else w / width for w in widths)
    attending = tuple(level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in state)
    classes = _shape(state, "label_emb.weight")[0] if "label_emb.weight" in state else 0
    channels = _shape(state, "input_blocks.0.0.weight")[1]
    return Sizes(width, mult, blocks, attending, classes, channels, out[0], classifier, side)


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state or state[name].ndim < 2:
        raise UserError(f"its weight {name!r} is missing or has no shape")
    return tuple(state[name].shape)


def _levels(state: Mapping[str, Tensor], outer: int, classifier: bool) -> int:
    if not classifier:  # between two levels the decoder has a residual block that upsamples
        return 1 + sum(
            name.startswith("output_blocks.") and not name.startswith(f"output_blocks.{name.split('.')[1]}.0.")
            for name in state
            if name.endswith(".in_layers.0.weight")
        )
    blocks = 0  # at the coarsest level all blocks attend, and the one that leads there does not
    while f"input_blocks.{outer - 1 - blocks}.1.qkv.weight" in state:
        blocks += 1
    return outer // (blocks + 1)


class _Place(NamedTuple):
    """A residual block and its attention in guided-diffusion, the one block of ours that replaces both, its level."""

    residual: str
    attention: str
    ours: str
    level: int


def renamed(
    state: Mapping[str, Tensor], sizes: Sizes, levels: Sequence[str], heads: Sequence[int], new_order: bool
) -> dict[str, Tensor]:
    """Weights by our names and in our order.

    Args:
        levels: our names of the levels, as in 64x64, finest first.
        heads: attention heads by level.
        new_order: `use_new_attention_order`.
    """
    places = list(_places(sizes, levels))
    names = {"input_blocks.0.0": f"enc.{levels[0]}_conv", **_ENDS}  # theirs -> ours
    names |= _POOL if sizes.classifier else {"out.2": "out_conv"}
    for place in places:
        names |= {f"{place.residual}.{part}": f"{place.ours}.{new}" for part, new in _RESIDUAL.items()}
        names |= {f"{place.attention}.{part}": f"{place.ours}.{new}" for part, new in _ATTENTION.items()}
    heads_of = {f"{place.ours}.qkv": heads[place.level] for place in places}
    result = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if module not in names:
            raise UserError(f"it has weights that are not known, among them {name[:80]!r}")
        ours = names[module]
        if ours in heads_of:
            value = _our_order(value, heads_of[ours], new_order)
        if ours == "map_label":
            value = value.T.contiguous()
        elif kind == "weight" and ours.endswith((".qkv", ".proj")):  # 1-D convolutions become 2-D ones, or linear
            value = value.flatten(1) if sizes.classifier and ours.startswith("pool.") else value[..., None]
        result[f"{ours}.{kind}"] = value
    return result


def _our_order(value: Tensor, heads: int, new_order: bool) -> Tensor:
    pattern = "(qkv heads c) ... -> (heads c qkv) ..." if new_order else "(heads qkv c) ... -> (heads c qkv) ..."
    if value.shape[0] % (3 * heads):
        raise UserError(f"{value.shape[0] // 3} channels do not divide among {heads} attention heads")
    return rearrange(value, pattern, heads=heads, qkv=3)


def _places(sizes: Sizes, levels: Sequence[str]) -> Iterator[_Place]:
    for level, name in enumerate(levels):
        parts = (["down"] if level else []) + [f"block{i}" for i in range(sizes.blocks)]
        for i, part in enumerate(parts, level * (sizes.blocks + 1) if level else 1):
            yield _Place(f"input_blocks.{i}.0", f"input_blocks.{i}.1", f"enc.{name}_{part}", level)
    last = len(levels) - 1
    middle = f"{'enc' if sizes.classifier else 'dec'}.{levels[last]}"
    yield _Place("middle_block.0", "middle_block.1", f"{middle}_in0", last)
    yield _Place("middle_block.2", "none", f"{middle}_in1", last)
    if sizes.classifier:
        return
    for level in range(last, -1, -1):
        for block in range(sizes.blocks + 1):
            theirs = f"output_blocks.{(last - level) * (sizes.blocks + 1) + block}"
            yield _Place(f"{theirs}.0", f"{theirs}.1", f"dec.{levels[level]}_block{block}", level)
        if level:  # with the level's last block, which may have an attention in between
            up = 2 if level in sizes.attending else 1
            yield _Place(f"{theirs}.{up}", "none", f"dec.{levels[level - 1]}_up", level)
