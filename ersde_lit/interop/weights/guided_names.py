"""What guided-diffusion's weights are called in our networks, and in which order theirs are."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from einops import rearrange
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.interop.weights.guided_sizes import Sizes

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


class _Place(NamedTuple):
    """A residual block of theirs, its attention, the block of ours that is both, and its level."""

    residual: str
    attention: str
    ours: str
    level: int


def renamed(
    state: Mapping[str, Tensor], sizes: Sizes, levels: Sequence[str], heads: Sequence[int], new_order: bool
) -> dict[str, Tensor]:
    """The weights by our names and in our order.

    Args:
        levels: what our network calls its levels, as in 64x64, finest first.
        heads: of attention, by level.
        new_order: `use_new_attention_order`.

    Raises:
        ValueError: weights that are not known.
    """
    places = [*_encoder(sizes, levels), *_middle(sizes, levels), *([] if sizes.classifier else _decoder(sizes, levels))]
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
        elif kind == "weight" and ours.endswith((".qkv", ".proj")):  # a convolution along one axis: along two, or none
            value = value.flatten(1) if sizes.classifier and ours.startswith("pool.") else value[..., None]
        result[f"{ours}.{kind}"] = value
    return result


def _our_order(value: Tensor, heads: int, new_order: bool) -> Tensor:
    pattern = "(qkv heads c) ... -> (heads c qkv) ..." if new_order else "(heads qkv c) ... -> (heads c qkv) ..."
    if value.shape[0] % (3 * heads):
        raise UserError(f"{value.shape[0] // 3} channels do not divide among {heads} attention heads")
    return rearrange(value, pattern, heads=heads, qkv=3)


def _encoder(sizes: Sizes, levels: Sequence[str]) -> Iterator[_Place]:
    for level, name in enumerate(levels):
        first = level * (sizes.blocks + 1)
        parts = (["down"] if level else []) + [f"block{i}" for i in range(sizes.blocks)]
        for i, part in enumerate(parts, first if level else 1):
            yield _Place(f"input_blocks.{i}.0", f"input_blocks.{i}.1", f"enc.{name}_{part}", level)


def _middle(sizes: Sizes, levels: Sequence[str]) -> Iterator[_Place]:
    last = len(levels) - 1
    kind = "enc" if sizes.classifier else "dec"
    yield _Place("middle_block.0", "middle_block.1", f"{kind}.{levels[last]}_in0", last)
    yield _Place("middle_block.2", "none", f"{kind}.{levels[last]}_in1", last)


def _decoder(sizes: Sizes, levels: Sequence[str]) -> Iterator[_Place]:
    i = 0
    for level in range(len(levels) - 1, -1, -1):
        for block in range(sizes.blocks + 1):
            theirs = f"output_blocks.{i}"
            yield _Place(f"{theirs}.0", f"{theirs}.1", f"dec.{levels[level]}_block{block}", level)
            i += 1
        if level:  # with the level's last block, which may have an attention in between
            up = 2 if level in sizes.attending else 1
            yield _Place(f"{theirs}.{up}", "none", f"dec.{levels[level - 1]}_up", level)
