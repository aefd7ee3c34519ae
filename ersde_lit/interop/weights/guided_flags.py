"""What guided-diffusion's weights do not say of themselves: the flags it was called with (read before torch is)."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from ersde_lit.errors import UserError


@dataclass(frozen=True)
class GuidedFlags:
    """Flags of guided-diffusion and improved-diffusion, by their names there; published models need none of them.

    Args:
        image_size: of guided-diffusion, as its flag: pixels along a side; the published models need none of these.
        noise_schedule: of guided-diffusion, as its flag.
        diffusion_steps: of guided-diffusion, as its flag; 1000 if nothing is said.
        rescale_timesteps: of guided-diffusion, as its flag: other than 1000 steps are told as 0 to 1000 all the same.
        num_heads: of guided-diffusion, as its flag, where num_head_channels was not given.
        num_head_channels: of guided-diffusion, as its flag.
        use_new_attention_order: of guided-diffusion, as its flag: how queries, keys and values are laid out.
        predict_xstart: of guided-diffusion, as its flag; false if nothing is said.
        dropout: of guided-diffusion, as its flag, for further training.
        num_channels: of guided-diffusion, as its flag; this and the next ones must be what the weights say.
        num_res_blocks: the same.
        channel_mult: the same, as in 1,2,3,4.
        attention_resolutions: the same, as in 32,16,8.
        learn_sigma: the same.
        class_cond: the same.
        resblock_updown: the same.
        use_scale_shift_norm: the same.
        num_heads_upsample: of guided-diffusion, as its flag: -1, or num_heads.
        timestep_respacing: not used, nor are the next ones: of guided-diffusion's own sampling and training.
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
        for name in ("image_size", "num_heads", "num_head_channels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} is at least 1, got {value}")
        if self.diffusion_steps is not None and self.diffusion_steps < 2:
            raise UserError(f"--diffusion_steps is at least 2, got {self.diffusion_steps}")
        if self.num_heads is not None and self.num_head_channels is not None:
            raise UserError("give --num_heads or --num_head_channels, not both")
        if self.num_heads_upsample not in (None, -1, self.num_heads):
            raise UserError("--num_heads_upsample is -1 or as --num_heads: the network here has the same both ways")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"--dropout is a probability below 1, got {self.dropout}")
        for name in ("channel_mult", "attention_resolutions"):
            if (text := getattr(self, name)) is not None and not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", text):
                raise UserError(f"--{name} is numbers with commas between them, as in 32,16,8, got {text[:40]!r}")

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}
