"""Steps of a flow model whose tokens [B, T, C] have separate noise levels, as conditions have in video models."""

from __future__ import annotations

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import ERSDE

SAME_TIME = 1e-6  # times that differ by less are equal: timesteps are float32


def token_times(timesteps: Tensor, sample: Tensor, steps: int) -> Tensor:
    """Flow times t [B, T], float64 on the CPU, of the tokens' timesteps ``steps * t``, [B, T] or [B, 1]."""
    try:
        t = timesteps.detach().to("cpu", torch.float64).expand(sample.shape[:-1]) / steps
    except RuntimeError:
        wanted, found = list(sample.shape[:-1]), list(timesteps.shape)
        raise UserError(f"per_token_timesteps must have the shape {wanted} of the tokens, not {found}") from None
    if not ((t >= 0) & (t <= 1)).all():
        raise UserError(f"per_token_timesteps must be from 0 to {steps}")
    return t


def token_rows(solver: ERSDE, t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [B, T] of the state, x0 and noise in a first-order step of each token from its time t [B, T] to the next
    of the schedule's times (N+1,) below it. Tokens at 0 remain."""
    below = torch.where(levels < t.unsqueeze(-1) - SAME_TIME, levels, 0).amax(-1)
    pairs, which = torch.stack([t, below], -1).flatten(0, 1).unique(dim=0, return_inverse=True)
    rows = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).repeat(len(pairs), 1)
    for row, pair in zip(rows, pairs, strict=True):
        if pair[0] > SAME_TIME:
            tableau = solver.tableau(pair / (1 - pair))
            row[:] = (1 - pair[1]) * torch.stack([tableau.r[0] / (1 - pair[0]), tableau.c[0, 0], tableau.b[0]])
    state, x0, noise = rows[which].view(*t.shape, 3).unbind(-1)
    return state, x0, noise
