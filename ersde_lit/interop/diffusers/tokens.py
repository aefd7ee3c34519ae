"""Steps of a flow model whose tokens [B, T, C] have levels of their own: some are a condition, with less noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import ERSDE

_SAME = 1e-6  # times that differ by less are one: timesteps are float32


def token_times(timesteps: Tensor, sample: Tensor, steps: int) -> Tensor:
    """Flow times t [B, T], float64 on the CPU, of the tokens' timesteps ``steps * t``, [B, T] or [B, 1].

    Raises:
        ValueError: timesteps of another shape, or not from 0 to `steps`.
    """
    try:
        t = timesteps.detach().to("cpu", torch.float64).expand(sample.shape[:-1]) / steps
    except RuntimeError:
        wanted, found = list(sample.shape[:-1]), list(timesteps.shape)
        raise UserError(f"per_token_timesteps must be of shape {wanted}, as the tokens, not {found}") from None
    if not ((t >= 0) & (t <= 1)).all():
        raise UserError(f"per_token_timesteps must be from 0 to {steps}")
    return t


def at_level(t: Tensor, level: Tensor) -> Tensor:
    """Which of the tokens [B, T] are at a level of the schedule, ()."""
    return (t - level).abs() < _SAME


def token_rows(solver: ERSDE, t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [B, T] of the state, of x0 and of noise in a first step from t [B, T], each to the next of the schedule's
    levels (N+1,) below it. Tokens at 0 remain."""
    below = torch.where(levels < t.unsqueeze(-1) - _SAME, levels, 0).amax(-1)
    pairs, which = torch.stack([t, below], -1).flatten(0, 1).unique(dim=0, return_inverse=True)
    rows = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).repeat(len(pairs), 1)
    for row, pair in zip(rows, pairs, strict=True):
        if pair[0] > _SAME:
            tableau = solver.tableau(pair / (1 - pair))
            row[:] = (1 - pair[1]) * torch.stack([tableau.r[0] / (1 - pair[0]), tableau.c[0, 0], tableau.b[0]])
    state, x0, noise = rows[which].view(*t.shape, 3).unbind(-1)
    return state, x0, noise
