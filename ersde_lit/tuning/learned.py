"""LearnedTable: a sampler's table whose levels, rows, noise and call levels are parameters."""

import math
from collections.abc import Collection
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ersde_lit.errors import UserError
from ersde_lit.solvers import Tableau, check_lams
from ersde_lit.solvers.loop import Denoise
from ersde_lit.solvers.sampler import Noise
from ersde_lit.solvers.tableau import as_float64
from ersde_lit.tuning.rows import full_history, theory

Freedom = Literal["levels", "rows", "gain", "calls", "noise"]
LEAST_LEVEL, MOST_LEVEL = 1e-4, 1e4  # of the first, where the denoiser has no range
LEAST_RATIO, MOST_RATIO = 1e-3, 10.0  # in ln lam, of a step
MOST_TOLD = 1.0  # in ln lam, from the state's level
LITTLE_NOISE, MOST_NOISE = 0.05, 4.0  # where it begins; phi = lam^17
FREEDOMS: tuple[Freedom, ...] = get_args(Freedom)


class LearnedTable(nn.Module):
    """A table of full history that starts as `start` exactly, of as many calls, and may then be learned.

    Rows are ER-SDE's of order 2 at the levels and the noise of the moment, plus corrections, which the start
    determines. So where only levels move, rows follow them as theory says. All parameters are float64.

    Args:
        start: any linear sampler's table that ends at lam = 0; folded by `full_history`.
        learn: what may change; all else stays as in `start`:
            - levels: of the states, the first included;
            - rows: weights of the state and of the x0, such that a constant image is kept (r + sum c = 1);
            - gain: the sum r + sum c too. It can make up for the mean that pure noise lacks;
            - calls: the levels that the denoiser is told;
            - noise: how much is added at each step.
        lam_min, lam_max: range of the levels, and of those told.
        levels: those of a denoiser of discrete time; it is told the nearest one.

    Raises:
        UserError: a start that has no such form, or an unknown freedom.
    """

    def __init__(
        self,
        start: Tableau,
        learn: Collection[Freedom] = FREEDOMS,
        lam_min: float = 0.0,
        lam_max: float = math.inf,
        levels: Tensor | None = None,
    ) -> None:
        super().__init__()
        if unknown := {*learn} - {*FREEDOMS}:
            raise UserError(f"a table learns {', '.join(FREEDOMS)}, not {', '.join(sorted(unknown))}")
        if (start.b[:-1] >= start.lams[1:-1]).any():
            raise UserError("a step of this table adds more noise than its level has: learn from another sampler")
        if start.lams[-1] != 0:
            raise UserError(f"a learned table ends at noise level 0, not {start.lams[-1]:.6g}: take such a grid")
        self.learn, self.lam_min, self.lam_max = frozenset(learn), lam_min, lam_max
        self.known = None if levels is None else as_float64(levels)
        start = full_history(start)
        n, lams = start.nfe, start.lams[:-1]
        ratios = (lams[:-1] / lams[1:]).log()
        share = (start.b[:-1] / lams[1:]).square().clamp(max=1 - 1e-12)  # of the variance, new
        told = lams if start.calls is None else start.calls
        self.log_start = _parameter(lams[0].log(), "levels" in learn)
        self.log_ratios = _parameter(ratios.log(), "levels" in learn)
        self.noise = _parameter((-torch.log1p(-share) / (2 * ratios)).sqrt(), "noise" in learn)  # excess = noise^2
        self.told = _parameter((told / lams).log(), "calls" in learn)
        self.state = _parameter(torch.zeros(n), "rows" in learn)
        self.past = _parameter(torch.zeros(n * (n - 1) // 2), "rows" in learn)
        self.gain = _parameter(torch.zeros(n), "gain" in learn)
        with torch.no_grad():
            self._correct(start)

    @property
    def nfe(self) -> int:
        return len(self.gain)

    def coefficients(self) -> Tableau:
        """The table at the current parameters, with gradients; on the CPU, calls always given, b of either sign."""
        log_start, log_ratios, noise, told, state, past, gain = (
            p.cpu() for p in (self.log_start, self.log_ratios, self.noise, self.told, self.state, self.past, self.gain)
        )
        n = len(gain)
        h = log_ratios.exp()
        lams = torch.cat([log_start.exp().view(1), (log_start - h.cumsum(0)).exp()])
        excess = noise.square()
        zero = lams.new_zeros(1)
        r = torch.cat([(-(1 + excess) * h).exp(), zero])
        # b^2 = l_t^2 (1 - exp(-2 excess h)), smooth in `noise` through 0.
        x = 2 * excess * h
        tiny = x < 1e-12
        fall = torch.where(tiny, torch.ones_like(x), -torch.expm1(-x) / torch.where(tiny, torch.ones_like(x), x))
        b = torch.cat([lams[1:] * noise * (2 * h * fall).sqrt(), zero])
        c = theory(lams, excess)
        rows, columns = torch.tril_indices(n, n, -1)
        steps = lams.new_zeros(n, n + 1).index_put((rows, columns + 1), past)  # between x0 j-1 and x0 j, newest first
        corrections = steps[:, 1:] - steps[:, :-1]
        corrections = torch.cat([corrections[:, :1] + (gain - state).unsqueeze(1), corrections[:, 1:]], dim=1)
        return Tableau(torch.cat([lams, zero]), r + state, c + corrections, b, calls=self._calls(lams * told.exp()))

    def tableau(self) -> Tableau:
        """The table at the current parameters, checked, without gradients; calls None where they are the levels."""
        with torch.no_grad():
            table = self.coefficients()
        check_lams(table.lams)
        assert table.calls is not None
        told = None if torch.allclose(table.calls, table.lams[:-1], rtol=1e-12, atol=0) else table.calls
        return table._replace(b=table.b.abs(), calls=told)

    def run(
        self, denoiser: Denoise, noise: Noise, labels: Tensor | None = None, *, recomputed: int | None = None
    ) -> Tensor:
        """x0 [B, ...] as `sample` has it, from ``lams[0] * noise.initial()``, with gradients to the parameters.

        Args:
            recomputed: so many calls, from the first, are computed again in the backward pass instead of being
                remembered: memory for time. None: all.
        """
        table = self.coefficients()
        z = noise.initial()
        dtype = torch.promote_types(z.dtype, torch.float32)
        assert table.calls is not None
        lams, r, c, b, told = (t.to(dtype) for t in (table.lams, table.r, table.c, table.b, table.calls))
        adds = "noise" in self.learn or b.detach() != 0
        condition: dict[str, Any] = {} if labels is None else {"labels": labels}
        y, history = lams[0] * z, list[Tensor]()
        for i in range(self.nfe):
            if recomputed is None or i < recomputed:
                x0 = checkpoint(denoiser, y, told[i], use_reentrant=False, **condition)
            else:
                x0 = denoiser(y, told[i], **condition)
            history.insert(0, x0.to(dtype))
            y = r[i] * y
            for weight, h in zip(c[i].unbind(), history, strict=False):
                y = y + weight * h
            if i < self.nfe - 1 and (adds is True or adds[i]):
                y = y + b[i] * noise.step(i)
        return y

    @torch.no_grad()
    def project_(self) -> None:
        """Moves the levels into [lam_min, lam_max] and what strayed back to where numbers are safe, after a step."""
        if "noise" in self.learn:
            self.noise.clamp_(-MOST_NOISE, MOST_NOISE)
        if "calls" in self.learn:
            self.told.clamp_(-MOST_TOLD, MOST_TOLD)
        if "levels" not in self.learn:
            return
        self.log_start.clamp_(math.log(max(self.lam_min, LEAST_LEVEL)), math.log(min(self.lam_max, MOST_LEVEL)))
        self.log_ratios.clamp_(math.log(LEAST_RATIO), math.log(MOST_RATIO))
        if self.lam_min > 0 and self.nfe > 1:
            most = float(self.log_start) - math.log(self.lam_min)
            self.log_ratios.sub_(max(0.0, math.log(float(self.log_ratios.exp().sum()) / most)))

    @torch.no_grad()
    def stir_(self) -> None:
        """Gives steps without noise a little, where it is to be learned: at none it has no gradient, by symmetry."""
        if "noise" in self.learn:
            self.noise.copy_(torch.where(self.noise.abs() < LITTLE_NOISE, LITTLE_NOISE, self.noise))

    def _calls(self, told: Tensor) -> Tensor:
        told = told + (told.clamp(self.lam_min, self.lam_max) - told).detach()  # `project_` keeps it from straying
        if self.known is None:
            return told
        return self.known[(told.detach().log().unsqueeze(1) - self.known.log()).abs().argmin(1)]

    def _correct(self, start: Tableau) -> None:
        """Sets the corrections to what `start` has beyond theory."""
        table = self.coefficients()
        state, c = start.r - table.r, start.c - table.c
        self.state.copy_(state)
        self.gain.copy_(state + c.sum(1))
        tails = -c.flip(1).cumsum(1).flip(1)  # minus the sum from column j on
        rows, columns = torch.tril_indices(self.nfe, self.nfe, -1)
        self.past.copy_(tails[rows, columns + 1])


def bytes_of_a_call(denoiser: Denoise, y: Tensor, lam: Tensor, labels: Tensor | None = None) -> int:
    """What one call remembers for the gradients to `y` and `lam`, beyond weights."""
    module = denoiser if isinstance(denoiser, nn.Module) else nn.Module()
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # without the call that made it, which holds it: a circle would stay in memory

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        denoiser(*(t.detach().requires_grad_() for t in (y, lam)), **({} if labels is None else {"labels": labels}))
    return sum(size for place, size in kept.items() if place not in weights)


def _parameter(value: Tensor, learned: bool) -> nn.Parameter:
    return nn.Parameter(value.to(torch.float64).clone(), requires_grad=learned)
