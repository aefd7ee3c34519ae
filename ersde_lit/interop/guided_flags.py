"""What guided-diffusion's weights do not say of themselves: the flags it was called with (read before torch is)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GuidedFlags:
    """Flags of guided-diffusion, by their names there; its published models need none of them.

    Args:
        image_size: of guided-diffusion, as its flag: pixels along a side; the published models need none of these.
        noise_schedule: of guided-diffusion, as its flag.
        num_heads: of guided-diffusion, as its flag, where num_head_channels was not given.
        num_head_channels: of guided-diffusion, as its flag.
        use_new_attention_order: of guided-diffusion, as its flag: how queries, keys and values are laid out.
        predict_xstart: of guided-diffusion, as its flag; false if nothing is said.
        dropout: of guided-diffusion, as its flag, for further training.
    """

    image_size: int | None = None
    noise_schedule: Literal["linear", "cosine"] | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    use_new_attention_order: bool | None = None
    predict_xstart: bool | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "num_heads", "num_head_channels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} is at least 1, got {value}")
        if self.num_heads is not None and self.num_head_channels is not None:
            raise ValueError("give --num_heads or --num_head_channels, not both")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout is a probability below 1, got {self.dropout}")

    @property
    def given(self) -> dict[str, int | float | str | bool]:
        return {name: value for name, value in vars(self).items() if value is not None}
