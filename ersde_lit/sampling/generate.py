"""Sampling of float images from seeds, block by block, for the FID callback, `sample` and tools."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ersde_lit.denoisers import Denoiser
from ersde_lit.denoisers.labels import labels_for
from ersde_lit.errors import UserError
from ersde_lit.solvers import Sampler, SeededNoise
from ersde_lit.solvers.loop import Callback
from ersde_lit.tf32 import tf32


class Block(NamedTuple):
    """A batch of samples: images[k] is a function of seeds[k] and labels[k]."""

    seeds: Sequence[int]
    images: Tensor  # float [B, C, H, W], nominally in [-1, 1], on the denoiser's device
    labels: Tensor | None  # int64 [B]; None for an unconditional model


def generate(
    denoiser: Denoiser,
    sampler: Sampler,
    seeds: Sequence[int],
    nfe: int,
    labels: Sequence[int] | Tensor | None = None,
    *,
    batch_size: int = 128,
    callback: Callback | None = None,
    allow_tf32: bool = False,
) -> Iterator[Block]:
    """Samples image k from seeds[k] and labels[k] alone, in fixed blocks of `batch_size` seeds, in the order given.

    Runs where the denoiser is, in evaluation mode (put back after each block). Another batch size changes an image by
    rounding only; the same one gives the same bytes on the same device. Arguments are checked here, not at first use.

    Args:
        nfe: number of network calls an image.
        labels: one class index an image, -1 = unconditional; None draws them from the seeds (`labels_of_seeds`).
        callback: handed to the sampler: callback(i, lam, y, x0) at each step of each block, for progress or previews.
        allow_tf32: on a GPU, float32 products and convolutions are in TF32: faster, to 3 digits. Otherwise they are
            not, whatever torch is set to.

    Raises:
        ValueError: batch_size < 1, labels that do not fit the seeds or the model, or of classes that were not trained.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; at least 1 image is sampled at a time")
    chosen = labels_for(seeds, labels, denoiser.num_classes, getattr(denoiser, "trained_classes", None))

    def block(part: slice) -> Block:
        device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
        noise = SeededNoise(seeds[part], denoiser.image_shape, device=device)
        given = None if chosen is None else chosen[part].to(device)
        with _evaluation_mode(denoiser), torch.inference_mode(), tf32(allow_tf32):
            images = sampler(denoiser, noise, nfe, given, callback)
        return Block(seeds[part], images.clone(), given)  # cloned to leave inference mode: the caller may write to it

    return (block(slice(start, start + batch_size)) for start in range(0, len(seeds), batch_size))


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True
