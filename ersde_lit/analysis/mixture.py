"""Mixtures of low-rank Gaussians fitted to images: laws that look like images, whose denoiser is known exactly.

    mixture = fit_mixture(images, components=64, rank=16)       # seconds to a minute
    save_mixture(mixture, "mixture.safetensors")
    x = TableSampler(ERSDE(3))(mixture, SeededNoise(range(1000), (784,)), 10)

Images that a sampler makes of it differ from ``mixture.draw(n)`` by the sampler's own error alone.
"""

import os
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.files import replacing
from ersde_lit.solvers.oracles import LowRankMixture

# Variance of rounding an image in [-1, 1] to 256 levels: what no law of 8-bit images falls below.
ROUNDING = (1 / 127.5) ** 2 / 12


def fit_mixture(images: Tensor, components: int, rank: int, seed: int = 0) -> LowRankMixture:
    """A mixture of the clusters of `images`, each with its leading principal components.

    Clusters are scikit-learn's MiniBatchKMeans; those of fewer than 2 rank images are left out. Variances are those of
    a cluster's images, that of all other directions their mean, none below the variance of rounding to 8 bits.

    Args:
        images: float, in [-1, 1], [N, ...]; flattened.
        components: clusters to look for, at least 1.
        rank: directions of each, at least 1, below the dimension.
        seed: of the clustering. The same images and seed give the same mixture on one machine.

    Returns:
        float64, of at most `components` components.

    Raises:
        UserError: rank too large, or no cluster has 2 rank images.
    """
    from sklearn.cluster import MiniBatchKMeans

    x = images.flatten(1).double()
    if not 1 <= rank < x.shape[1]:
        raise UserError(f"rank must be from 1 to {x.shape[1] - 1} for images of {x.shape[1]} values, not {rank}")
    kmeans = MiniBatchKMeans(components, batch_size=4096, n_init=1, random_state=seed).fit(x.float().numpy())
    clusters = [x[torch.from_numpy(kmeans.labels_ == k)] for k in range(components)]
    clusters = [cluster for cluster in clusters if len(cluster) >= 2 * rank]
    if not clusters:
        raise UserError(f"no cluster has {2 * rank} images for rank {rank}: take fewer components or a lower rank")
    parts = zip(*(_component(cluster, rank) for cluster in clusters), strict=True)
    weights = torch.tensor([float(len(cluster)) for cluster in clusters], dtype=torch.float64)
    return LowRankMixture(weights / weights.sum(), *(torch.stack(part) for part in parts))


def _component(cluster: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """mean, basis, variance and rest of one cluster [n, D]."""
    mean = cluster.mean(0)
    covariance = (cluster - mean).T @ (cluster - mean) / (len(cluster) - 1)
    values, vectors = torch.linalg.eigh(covariance)
    rest = values[:-rank].clamp(min=0).mean().clamp(min=ROUNDING)
    return mean, vectors[:, -rank:], values[-rank:].clamp(min=ROUNDING), rest


def save_mixture(mixture: LowRankMixture, path: str | os.PathLike[str]) -> None:
    """Writes a mixture as a .safetensors file; one that is there is replaced."""
    tensors = {field.name: getattr(mixture, field.name).contiguous() for field in fields(mixture)}
    with replacing(Path(path)) as partial:
        partial.write_bytes(save(tensors))


def load_mixture(path: str | os.PathLike[str]) -> LowRankMixture:
    """Reads what `save_mixture` wrote.

    Raises:
        UserError: no such file, or not one of a mixture.
    """
    names = [field.name for field in fields(LowRankMixture)]
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is no .safetensors file: {error}") from None
    if sorted(tensors) != sorted(names):
        raise UserError(f"{path} is no mixture: it holds {', '.join(sorted(tensors))}, not {', '.join(names)}")
    return LowRankMixture(**tensors)
