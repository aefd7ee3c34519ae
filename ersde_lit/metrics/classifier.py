"""Small classifier trained on the labels of a data set, whose features replace Inception's for unnatural images."""

import math
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersde_lit.data import ImageDataModule, Split
from ersde_lit.errors import UserError
from ersde_lit.files import replacing
from ersde_lit.metrics.cache import cache_folder, digest_of
from ersde_lit.metrics.features import Features
from ersde_lit.tf32 import tf32


class Recipe(NamedTuple):
    """Training recipe of the classifier. Part of its cache key: a changed recipe trains anew."""

    width: int = 32
    num_features: int = 64
    batch_size: int = 128
    passes: int = 20  # over the data, but no more than
    max_images: int = 240_000
    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    seed: int = 0
    version: int = 1  # raise it when the code below changes what comes out


class Classifier(Features):
    """Small convolutional classifier; its features are the input of its last linear layer, averaged over the image.

    Args:
        image_shape: C, H, W; the resolution is halved down to about 4x4.
        num_classes: at least 2.
        recipe: widths; the rest of it is used by `train_classifier`.
    """

    known_as = "ersde_lit.evaluation.classifier.Classifier"
    accuracy: Tensor  # [], on the "test" images; a buffer, so that it travels with the weights

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, recipe: Recipe) -> None:
        super().__init__()
        channels, *size = image_shape
        halvings = max(1, round(math.log2(min(size) / 4)))
        layers: list[nn.Module] = []
        for level in range(halvings):
            width = recipe.num_features if level == halvings - 1 else recipe.width
            layers += [_block(channels, width, stride=2), _block(width, width, stride=1)]
            channels = width
        self.image_shape = tuple(image_shape)
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)
        self.num_features, self.num_classes = channels, num_classes
        self.register_buffer("accuracy", torch.zeros(()))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self(images)
        return features, self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != self.image_shape:
            raise UserError(f"this classifier reads images {self.image_shape}, not {tuple(images.shape[1:])}")
        return self.body(images.float() / 127.5 - 1).mean(dim=(2, 3))

    def logits(self, images: Tensor) -> Tensor:
        return self.features_and_logits(images)[1]

    @property
    def description(self) -> str:
        return f"classifier features, {self.accuracy:.1%} of held-out images read right"


def _block(channels: int, width: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


@torch.inference_mode(False)  # it may have to train
@torch.enable_grad()
def classifier(
    data: ImageDataModule,
    cache: str | Path | None = None,
    recipe: Recipe = Recipe(),  # noqa: B008
    device: torch.device | str = "cpu",
) -> Classifier:
    """The classifier of this data set: trained on its "train" labels once, in seconds to a minute, then cached.

    The file's name hashes images, labels and recipe, so it never serves another data set. Training is seeded and
    leaves the global random state alone. Weights trained on another machine differ by rounding, and so, slightly, do
    distances measured with them: compare only what one file measured.

    Args:
        cache: folder; None: `ersde_lit` in $XDG_CACHE_HOME or ~/.cache. Not used if it cannot be written.
        device: where it is trained, in float32; it comes back on the CPU.
    """
    if data.num_classes < 2:
        raise UserError(f"classifier features need a labelled data set; {type(data).__name__} has no classes")
    train, held_out = data.split("train"), data.split("test")
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        net = Classifier(data.image_shape, data.num_classes, recipe).eval().requires_grad_(False)
    key = digest_of(data, repr((recipe, tuple(train.images.shape))), train)
    path = cache_folder(cache) / f"classifier-{key}.pt"
    try:
        net.load_state_dict(torch.load(path, weights_only=True))
    except Exception:  # absent, cut short, of an older torch: whatever it is, train anew
        with tf32(False):
            _train(net.to(device), train, recipe)
            net.accuracy.fill_(_accuracy(net, held_out))
        net.cpu()
        with suppress(OSError, RuntimeError):  # a cache that cannot be written is not used
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, concurrent=True) as partial:
                torch.save(net.state_dict(), partial)
    return net


def _train(net: Classifier, split: Split, recipe: Recipe) -> None:
    images, labels = split
    device = net.accuracy.device
    steps = min(recipe.passes * len(labels), recipe.max_images) // recipe.batch_size
    net.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(net.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=max(steps, 10))
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.cat([torch.randperm(len(labels), generator=generator) for _ in range(recipe.passes)])
    for batch in order.split(recipe.batch_size)[:steps]:
        loss = F.cross_entropy(net.logits(images[batch].to(device)), labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval().requires_grad_(False)


@torch.no_grad()
def _accuracy(net: Classifier, split: Split) -> float:
    guesses = [net.logits(images.to(net.accuracy.device)).argmax(1).cpu() for images in split.images.split(500)]
    return (torch.cat(guesses) == split.labels).double().mean().item()
