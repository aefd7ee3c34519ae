"""Improved precision and recall (Kynkaanniemi et al., 2019, arXiv:1904.06991)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ersde_lit.errors import UserError

NEIGHBOURS = 3
CHUNK = 256  # rows of the matrix of distances at a time


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Precision and recall of features [n, d] against those of real images [m, d].

    An image lies within a set if some image of that set is nearer to it than to its own third nearest
    neighbour there. Precision is the share of generated images within the real set, recall that of real ones within
    the generated set. Both depend on n and m: compare only values of the same.
    """
    if min(len(generated), len(real)) <= NEIGHBOURS:
        raise UserError(
            f"precision and recall need more than {NEIGHBOURS} images of each kind, not {len(generated)} generated and "
            f"{len(real)} real ones"
        )
    centre = real.double().mean(0)
    a, b = (features.double() - centre for features in (generated, real))
    return _share_within(a, b), _share_within(b, a)


def _share_within(points: Tensor, members: Tensor) -> float:
    radii = torch.cat([d.kthvalue(NEIGHBOURS + 1, dim=1).values for d in _squared_distances(members, members)])
    within = torch.cat([(d <= radii).any(1) for d in _squared_distances(points, members)])
    return within.double().mean().item()


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Squared distances of x to all of y, by chunks of rows, in float64: cancellation is 1e-16 of the norms."""
    norms = y.square().sum(1)
    for rows in x.split(CHUNK):
        yield torch.addmm(norms, rows, y.T, alpha=-2) + rows.square().sum(1, keepdim=True)
