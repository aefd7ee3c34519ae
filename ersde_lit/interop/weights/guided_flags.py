"""Command-line flags of guided-diffusion that its weights do not tell; imported before torch is."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from ersde_lit.errors import UserError


@dataclass(frozen=True)
class GuidedFlags:
    """Flags of guided-diffusion and improved-diffusion, by their names there; published models need none of them.

    Args:
        image_size: guided-diffusion's flag: pixels along a side.
        noise_schedule: guided-diffusion's flag.
        diffusion_steps: guided-diffusion's flag; default 1000.
        rescale_timesteps: guided-diffusion's flag: steps other than 1000 are passed to the network as 0 to 1000.
        num_heads: guided-diffusion's flag, where num_head_channels was not given.
        num_head_channels: guided-diffusion's flag.
        use_new_attention_order: guided-diffusion's flag: the layout of queries, keys and values.
        predict_xstart: guided-diffusion's flag; default false.
        dropout: guided-diffusion's flag, for further training.
        num_channels: guided-diffusion's flag; this and the next ones are checked against the weights.
        num_res_blocks: checked.
        channel_mult: checked, as in 1,2,3,4.
        attention_resolutions: checked, as in 32,16,8.
        learn_sigma: checked.
        class_cond: checked.
        resblock_updown: checked.
        use_scale_shift_norm: checked.
        num_heads_upsample: guided-diffusion's flag: -1, or num_heads.
        timestep_respacing: accepted and not used, as are the next ones, which configure its sampling and training.
        sigma_small: not used.
        use_kl: not used.
        rescale_learned_sigmas: not used.
        use_fp16: not used.
        use_checkpoint: not used.
    """

    image_size: int | None = None
    noise_schedule: Literal["linear", "cosine"] | None = None
    diffusion_steps: int | None = None
    rescale_timesteps: bool | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    use_new_attention_order: bool | None = None
    predict_xstart: bool | None = None
    dropout: float | None = None
    num_channels: int | None = None
    num_res_blocks: int | None = None
    channel_mult: str | None = None
    attention_resolutions: str | None = None
    learn_sigma: bool | None = None
    class_cond: bool | None = None
    resblock_updown: bool | None = None
    use_scale_shift_norm: bool | None = None
    num_heads_upsample: int | None = None
    timestep_respacing: str | None = None
    sigma_small: bool | None = None
    use_kl: bool | None = None
    rescale_learned_sigmas: bool | None = None
    use_fp16: bool | None = None
    use_checkpoint: bool | None = None

    def __post_init__(self) -> None:
        for name, least in {"image_size": 1, "num_heads": 1, "num_head_channels": 1, "diffusion_steps": 2}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"--{name} is at least {least}, got {value}")
        if self.num_heads is not None and self.num_head_channels is not None:
            raise UserError("give --num_heads or --num_head_channels, not both")
        if self.num_heads_upsample not in (None, -1, self.num_heads):
            raise UserError("--num_heads_upsample must be -1 or --num_heads: the network here has one number of heads")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"--dropout is a probability below 1, got {self.dropout}")
        for name in ("channel_mult", "attention_resolutions"):
            if (text := getattr(self, name)) is not None and not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", text):
                raise UserError(f"--{name} is numbers separated by commas, as in 32,16,8, got {text[:40]!r}")

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}
