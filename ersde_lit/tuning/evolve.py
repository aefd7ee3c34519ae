"""Learning of a table without gradients, by CMA-ES over a few directions of its parameters.

For networks that memory or guidance gives no gradients through. CMA-ES is Hansen's (https://arxiv.org/abs/1604.00772),
of the package `cmaes` (extra `tune`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ersde_lit.errors import UserError, needs_extra
from ersde_lit.files import disk_errors, write_text
from ersde_lit.ranks import Ranks
from ersde_lit.tuning.learned import LearnedTable
from ersde_lit.tuning.problem import LEARNING, Problem


def evolve(
    table: LearnedTable,
    problem: Problem,
    evaluations: int = 200,
    samples: int = 1000,
    batch: int = 200,
    *,
    record: str | Path | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Moves `table` along `directions` to where the objective of the first learning seeds is least, in place.

    All candidates are judged on the same noise. What is kept is the mean of the last population, which has seen more
    noise than the best of it.

    Args:
        evaluations: runs of the sampler on all samples, about.
        samples: learning seeds.
        batch: seeds at a time.
        record: JSON file of what was tried and found, written after each population; where it is there, of the same
            search, that goes on as if it had not stopped.
        ranks: share each population, and all get the table; None: this process is alone.

    Raises:
        UserError: the record is damaged or of another search, or cannot be written.
    """
    with needs_extra("tune", "Learning without gradients"):
        from cmaes import CMA

    along = directions(table)
    if not len(along):
        return
    learned = [p for p in table.parameters() if p.requires_grad]
    origin = parameters_to_vector(learned).detach()
    search = CMA(mean=np.zeros(len(along)), sigma=0.5, seed=0)

    def move(point: np.ndarray) -> None:
        vector_to_parameters(origin + torch.from_numpy(point) @ along, learned)
        table.project_()

    def value(point: np.ndarray) -> float:
        move(point)
        try:
            return float(problem.scores(table.tableau(), LEARNING[:samples], batch).mean())
        except FloatingPointError:
            return float("inf")

    ranks, size = ranks or Ranks(), search.population_size
    told = ranks.of_first([] if record is None or ranks.rank else _read(Path(record), size, len(along)))
    for k in range(max(1, evaluations // size)):
        # Asked for in what was told too, which moves the generator on. The first rank's: ranks' arithmetic may differ.
        population = ranks.of_first([search.ask() for _ in range(size)])
        if k == len(told):
            shares = ranks.gather([value(point) for point in population[ranks.rank :: ranks.count]])
            values = [shares[i % ranks.count][i // ranks.count] for i in range(size)]
            worst = max((v for v in values if np.isfinite(v)), default=0.0)
            values = [v if np.isfinite(v) else worst + 1 for v in values]
            told.append([[*point.tolist(), v] for point, v in zip(population, values, strict=True)])
            if record is not None and not ranks.rank:
                with disk_errors(record, None):
                    Path(record).parent.mkdir(exist_ok=True)
                    write_text(record, json.dumps(told))
        search.tell([(np.array(point), v) for *point, v in told[k]])
    move(ranks.of_first(search.mean))


def _read(path: Path, population: int, dimensions: int) -> list[Any]:
    """What a search was told before it stopped: for each population its points, each with its value behind it."""
    try:
        told = np.array(json.loads(path.read_text(encoding="utf-8")), dtype=float)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):
        told = np.empty(0)
    safe = np.array([1e30] * dimensions + [np.inf])  # of points, beyond which CMA stops with an assertion
    if told.shape[1:] != (population, dimensions + 1) or not (np.abs(told) < safe).all():
        raise UserError(f"{path} is damaged or of another search: delete it to begin anew")
    found: list[Any] = told.tolist()
    return found


def directions(table: LearnedTable) -> Tensor:
    """(k, P) directions in the parameters that `table` learns, each of a length that is worth a try: the first level,
    the length of all steps and its trend, noise and its trend, how far x0 is extrapolated, the sum of the first row,
    the levels told."""
    n = table.nfe
    trend = torch.linspace(-1, 1, max(n - 1, 1), dtype=torch.float64)[: n - 1]
    newest = torch.zeros_like(table.past)
    rows, columns = torch.tril_indices(n, n, -1)
    newest[(columns == 0) & (rows < n - 1)] = 0.1
    first = torch.zeros_like(table.gain)
    first[0] = 0.02
    moves: list[tuple[Tensor, Tensor]] = [
        (table.log_start, torch.tensor(0.5, dtype=torch.float64)),
        (table.log_ratios, torch.full_like(trend, 0.2)),
        (table.log_ratios, 0.3 * trend),
        (table.noise, torch.full_like(trend, 0.2)),
        (table.noise, 0.2 * trend),
        (table.past, newest),
        (table.gain, first),
        (table.told, torch.full_like(table.gain, 0.05)),
    ]
    learned = [p for p in table.parameters() if p.requires_grad]
    vectors = [
        torch.cat([(move if p is target else torch.zeros_like(p)).flatten() for p in learned])
        for target, move in moves
        if target.requires_grad and move.any()
    ]
    return torch.stack(vectors) if vectors else torch.empty(0, 0)
