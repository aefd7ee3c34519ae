"""Encoder and decoder of a U-Net, whose parts are named after the resolution they work at.

Encoder: `32x32_conv` (finest) or `16x16_down`, then `16x16_block0`, ...; each result is a skip, which one block of the
decoder takes. Decoder: `8x8_in0`, `8x8_in1` (coarsest) or `16x16_up`, then one block more than the encoder has.

`sides` are the resolutions and `widths` the channels of the levels, finest first; `num_blocks` those of the encoder at
each; `attn_resolutions` where blocks attend; `block` makes one from (in_channels, out_channels, direction=None,
attention=False).
"""

from collections.abc import Callable, Sequence

from torch import nn


def encoder(
    sides: Sequence[int], widths: Sequence[int], num_blocks: int, attn_resolutions: Sequence[int],
    first: nn.Module, stem: int, block: Callable[..., nn.Module],
) -> tuple[nn.ModuleDict, list[int]]:  # fmt: skip
    """The encoder that begins with `first`, of `stem` channels; and the channels of its skips."""
    enc, skips = nn.ModuleDict({f"{sides[0]}x{sides[0]}_conv": first}), [stem]
    for level, (side, width) in enumerate(zip(sides, widths, strict=True)):
        if level:
            enc[f"{side}x{side}_down"] = block(skips[-1], skips[-1], direction="down")
            skips.append(skips[-1])
        for i in range(num_blocks):
            enc[f"{side}x{side}_block{i}"] = block(skips[-1], width, attention=side in attn_resolutions)
            skips.append(width)
    return enc, skips


def decoder(
    sides: Sequence[int], widths: Sequence[int], num_blocks: int, attn_resolutions: Sequence[int],
    skips: Sequence[int], block: Callable[..., nn.Module], every_block_attends: bool = True,
) -> nn.ModuleDict:  # fmt: skip
    """The decoder that takes skips of these channels.

    Args:
        every_block_attends: at the resolutions with attention; otherwise the last block of a level alone.
    """
    dec, skips = nn.ModuleDict(), [*skips]
    c = skips[-1]
    for side, width in reversed([*zip(sides, widths, strict=True)]):
        if side == sides[-1]:
            dec[f"{side}x{side}_in0"] = block(c, c, attention=True)
            dec[f"{side}x{side}_in1"] = block(c, c)
        else:
            dec[f"{side}x{side}_up"] = block(c, c, direction="up")
        for i in range(num_blocks + 1):
            attends = side in attn_resolutions and (every_block_attends or i == num_blocks)
            dec[f"{side}x{side}_block{i}"] = block(c + skips.pop(), width, attention=attends)
            c = width
    return dec
