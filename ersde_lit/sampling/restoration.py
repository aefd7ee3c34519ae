"""Restoration: a degraded image is the state at the largest noise level, from which a sampler goes to a clean one."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ersde_lit.denoisers import Denoiser, NoiseLaw, White
from ersde_lit.errors import UserError
from ersde_lit.solvers import ERSDE, Sampler, TableSampler, grids, sample
from ersde_lit.solvers.loop import Callback
from ersde_lit.solvers.tableau import SAME_LEVEL, Tableau

# What restores where nothing is said: second order, without noise. The last call is at lam = 0.3, since a network sees
# the degradation the worse the less there is of it (tools/results/bias_field.md, shadows.md).
RESTORER = TableSampler(ERSDE(order=2, noise_scale="ode"), partial(grids.log_uniform, lam_max=1.0, lam_min=0.3))


def degrade(law: NoiseLaw, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Degrades images [B, C, H, W] by N at lam = 1, that of image k from seeds[k], in [-1, 1] as a file holds them."""
    x0 = law.encode(images)
    return law.decode(x0 + law.draw(seeds, x0)).clip(-1, 1)


def restoration_table(denoiser: Denoiser, sampler: Sampler, nfe: int) -> Tableau:
    """The table of a restoration.

    Raises:
        UserError: the denoiser samples images, or the sampler does not go with restoration by it.
    """
    law = denoiser.noise
    if isinstance(law, White):
        raise UserError("the model removes white noise, so it samples images and restores none: take `sample`")
    if not isinstance(sampler, TableSampler):
        raise UserError(
            f"{type(sampler).__name__} has no table, which restoration needs: take er_sde, ddim, unipc2, ..."
        )
    if sampler.add_mean:
        raise UserError("add_mean is for starts of pure noise: a degraded image has the mean")
    table = sampler.table(denoiser, nfe)
    if abs(float(table.lams[0]) / denoiser.lam_max - 1) > SAME_LEVEL:
        raise UserError(
            f"the grid starts at {table.lams[0]:.6g}, and a degraded image is at {denoiser.lam_max:.6g}: leave "
            "sigma_max out"
        )
    if bool(table.b.any()):
        law.steps([0], torch.zeros(1, *denoiser.image_shape))  # raises where noise is wrong
    return table


@torch.no_grad()
def restore(
    denoiser: Denoiser,
    sampler: Sampler,
    degraded: Tensor,
    nfe: int,
    seeds: Sequence[int] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Restores images [B, C, H, W] in [-1, 1], of any size that the network takes.

    Args:
        denoiser: of a noise law that is not white; its averaged weights if it is a `DiffusionModule`'s.
        sampler: one with a table; without noise, or with it where the law is one Gaussian for all images.
        seeds: one an image, for samplers with noise; 0, 1, .. if not given.

    Raises:
        UserError: as `restoration_table`, or the images are not floats [B, C, H, W] of the denoiser's channels.
        FloatingPointError: a restored image was not finite.
    """
    table, law = restoration_table(denoiser, sampler, nfe), denoiser.noise
    channels = denoiser.image_shape[0]
    if not degraded.is_floating_point() or degraded.ndim != 4 or degraded.shape[1] != channels:
        is_now = f"{degraded.dtype} {[*degraded.shape]}"
        raise UserError(f"images to restore are floats in [-1, 1], [B, {channels}, H, W], not {is_now}")
    y = law.encode(degraded)
    noise = law.steps(range(len(y)) if seeds is None else seeds, y) if bool(table.b.any()) else None
    return law.decode(sample(denoiser, table, y, noise=noise, mean=law.mean(y), callback=callback))
