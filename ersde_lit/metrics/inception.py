"""Inception-v3 of published FIDs: torch-fidelity's port of the TensorFlow graph of 2015-12-05."""

import io
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from ersde_lit.errors import UserError, needs_extra
from ersde_lit.metrics.cache import cache_folder
from ersde_lit.metrics.features import Features
from ersde_lit.metrics.weights_file import mismatch, read_state

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SAME = "pt_inception-2015-12-05-6726825d.pth"  # as pytorch-fid calls it
SHA256 = "6726825d"  # its beginning


class Inception(Features):
    """2048 features, and the logits without bias (1008 classes) that Inception Score is measured with.

    Images are resized to 299x299 as TensorFlow 1 did it (bilinear, corners not aligned, no antialiasing) inside the
    network; grey ones are repeated to three channels.

    Args:
        weights: the file; None: the first found of `FILE` in the cache folder and of that or `SAME` in torch.hub's, or
            else downloaded to the cache folder.
        cache: folder; None: `ersde_lit` in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        ValueError: no file and no network, or a file that does not hold these weights. It is never unpickled unsafely.
    """

    num_features, num_classes, batch_size = 2048, 1008, 50
    known_as = "ersde_lit.evaluation.inception.Inception"

    def __init__(self, weights: str | Path | None = None, cache: str | Path | None = None) -> None:
        super().__init__()
        path = Path(weights).expanduser() if weights is not None else find_weights(cache)
        state, sha = read_state(path)
        self.published = sha.startswith(SHA256)
        self.net = _network(state, path)

    @property
    def description(self) -> str:
        kind = "published weights" if self.published else f"weights {self.fingerprint[:8]}, not the published ones"
        return f"Inception-v3 features (2048, {kind})"

    @property
    def preprocessing(self) -> str:
        return "uint8, bilinear to 299x299 as TensorFlow 1 (no antialiasing), (x - 128) / 128"

    def forward(self, images: Tensor) -> Tensor:
        return self.features_and_logits(images)[0]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.check_channels(images)
        features, logits = self.net(images.expand(-1, 3, -1, -1))
        return features, logits


def find_weights(cache: str | Path | None = None) -> Path:
    """Path of the published weights, downloaded if need be."""
    folder = cache_folder(cache)
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    for path in (folder / FILE, hub / FILE, hub / SAME):
        if path.is_file():
            return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(folder / FILE), hash_prefix=SHA256, progress=False)
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"Inception's weights are not here and cannot be downloaded ({reason}): put {URL} into {folder}, "
            "or give the file itself (--weights)"
        ) from None
    return folder / FILE


def _network(state: dict[str, Tensor], path: Path) -> nn.Module:
    """torch-fidelity's network, which unpickles its file unsafely: so it is given what was checked, written anew."""
    with needs_extra("fid", "Inception"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        with torch.random.fork_rng():  # layers are drawn before they are loaded
            net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], file)
    except RuntimeError as error:
        raise mismatch(path, "Inception", error) from None
    return net.to(memory_format=torch.channels_last)  # 1.6 times as fast on a CPU
