"""Features that cost nothing, of 2x4x4 images, and images for them."""

import torch
from torch import Tensor, nn

from ersde_lit.metrics import Features


class Projection(Features):
    """Random features and classes; notes what it is given."""

    num_features, num_classes, batch_size = 6, 5, 64

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.linear = nn.Linear(32, self.num_features)
            self.head = nn.Linear(self.num_features, self.num_classes)
        self.dropout = nn.Dropout(0.5)
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.given.append(images)
        return self.dropout(self.linear(images.flatten(1) / 255).sin())

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self(images)
        return features, 4 * (40 * self.head(features)).sin()


def some_images(n: int, seed: int, low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, (n, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
