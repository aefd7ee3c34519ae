"""Problem of Gaussian data, whose objective is the exact distance of laws, without Monte Carlo."""

from torch import Tensor

from ersde_lit.solvers.oracles import BasisNoise, Gaussian
from ersde_lit.solvers.sampler import Noise
from ersde_lit.tuning.problem import Problem


def exact_gaussian(data: Gaussian, steps: int = 32) -> Problem:
    """A table for Gaussian data: the 2-Wasserstein distance of what it makes of pure noise to the data.

    The batch is the basis of `BasisNoise`, whatever the seeds, and the distance is read off it as
    `oracles.output_law` does. One seed is enough for learning and for stopping.

    Args:
        steps: at least the calls of the table.
    """

    def distance(x: Tensor, noise: Noise, labels: Tensor | None) -> Tensor:
        # Added under the roots, which have no gradient at 0, is less than rounding.
        std = ((x[1:] - x[0]).square().sum(0) + 1e-30).sqrt()
        return ((x[0] - data.mean).square().sum() + (std - data.std).square().sum() + 1e-30).sqrt()

    return Problem(data, data.mean.shape, distance, noise=lambda seeds: BasisNoise(steps + 2, data.mean))
