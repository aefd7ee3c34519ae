"""Distance of images to the nearest training image, which reveals memorisation."""

import torch
from torch import Tensor

from ersde_lit.tf32 import tf32


@tf32(False)
def nearest_distances(images: Tensor, references: Tensor, chunk: int = 5000) -> Tensor:
    """Distance of each image to the nearest reference: root mean square over its pixels, in grey levels (0 to 255).

    Generated images that look real (a good FID) and lie much nearer to the training images than held-out real ones do
    are memorised. Blurred ones lie near as well, so a small distance says nothing beside a bad FID.

    Args:
        images: uint8 [n, C, H, W]; the work is n x N.
        references: uint8 [N, C, H, W], on any device; visited `chunk` at a time on that of the images.

    Returns:
        float32 [n]; a copy of a reference gives exactly 0.
    """
    x = images.flatten(1).float()
    nearest = torch.full((len(x),), torch.inf, device=x.device)
    index = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for start in range(0, len(references), chunk):
        refs = references[start : start + chunk].to(x.device).flatten(1).float()
        # |x - r|^2 less |x|^2, which all share; cancellation here decides between near ties at most
        value, best = torch.addmm(refs.square().sum(1), x, refs.T, alpha=-2).min(1)
        index = torch.where(value < nearest, best + start, index)
        nearest = torch.minimum(nearest, value)
    found = references[index.to(references.device)].to(x.device).flatten(1).float()
    return (x - found).square().mean(1).sqrt()
