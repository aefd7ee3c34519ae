"""Encoder of a U-Net as a classifier of noisy images: the network of a `NoisyClassifier`."""

from collections.abc import Sequence

from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.networks.base import Network
from ersde_lit.networks.unet import Block, Downsample, norm, positional


class ClassifierEncoder(Network):
    """Encoder of `UNet`, averaged over the image and mapped to class logits (after Dhariwal & Nichol 2021).

    Args:
        image_shape: (C, H, W).
        num_classes: at least 2.
        width, multipliers, blocks, attention, head_width, dropout: as for `UNet`.

    Raises:
        ValueError: settings that do not go together.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (2,),
        head_width: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(image_shape) != 3:
            raise UserError(f"image_shape is (channels, height, width), got {tuple(image_shape)}")
        if num_classes < 2:
            raise UserError(f"a classifier needs at least 2 classes, got {num_classes}")
        if width % 8:
            raise UserError(f"width must be a multiple of 8 (normalisation groups), got {width}")
        channels, height, side = image_shape
        self.image_shape = (channels, height, side)
        self.num_classes = num_classes
        self.width = width

        embed = 4 * width
        self.embed_noise = nn.Sequential(nn.Linear(width, embed), nn.SiLU(), nn.Linear(embed, embed), nn.SiLU())
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        c = width
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.down.append(Downsample(c))
            for _ in range(blocks):
                self.down.append(
                    Block(c, width * multiplier, embed, dropout, head_width if level in attention else None)
                )
                c = width * multiplier
        self.leave = nn.Sequential(norm(c), nn.SiLU())
        self.head = nn.Linear(c, num_classes)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """Logits [B, num_classes] from x [B, C, H, W] and c_noise [B]; the rest, of other networks, is ignored."""
        embedding = self.embed_noise(positional(c_noise, self.width).to(x.dtype))
        x = self.enter(x)
        for layer in self.down:
            x = layer(x, embedding)
        return self.head(self.leave(x).mean((2, 3)))


Encoder = ClassifierEncoder  # the name until version 0.1, in checkpoints
