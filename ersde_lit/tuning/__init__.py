"""Tuning: learning a sampler's table for a frozen denoiser.

    python -m ersde_lit tune --ckpt_path model.ckpt --nfe 4,5,6,8 --data D --out model.tables
    python -m ersde_lit sample --ckpt_path model.ckpt --solver model.tables --nfe 5 --seeds 0-499 --out samples.npz

The command learns a table for each NFE, minutes each, writes the file after each, and goes on after a kill. What is not
better than the default on seeds kept for that is the default's own table. At the end it reports distances of fresh
samples, by the default, by its rivals and by what was learned, in the features learned in and in others. `--into
tuned.ckpt` makes the tables a checkpoint's default, `--gradient_free` needs no gradients. In Python:

    problem = Problem(denoiser, shape=(1, 28, 28), objective=EnergyDistance(features, features(real_images)))
    tuned = tune(problem, nfe=5)
    tuned.before.mean(), tuned.after.mean(), tuned.error      # on noise that was not learned from
    x0 = sample(denoiser, tuned.tableau, tuned.tableau.lams[0] * noise.initial(), noise=noise)

The denoiser is any ``denoiser(y, lam) -> x0``, features any differentiable function of a batch; `ImageFeatures` makes
one of the metrics' features. A learned table is a table: levels, all weights of the full history, the noise of each
step, the levels that the denoiser is told.

- grid: `plan_levels` picks levels by dynamic programming over one fine run of the denoiser, in seconds.
- drift, noise: `TableTuner` learns a `LearnedTable` by gradients through all calls, towards an objective: the law of
  the samples in features (`EnergyDistance`, `KernelDistance`), in several at once (`SumOfDistances`: the command adds
  pixels, so that nothing is won at their cost), or a teacher's images (`Teacher`; no noise).
- `evolve` learns without gradients.

Learning, stopping and reporting use disjoint seeds: `LEARNING`, `STOPPING`, and those below, which people sample.
"""

from ersde_lit.names import STAGES, Stage
from ersde_lit.tuning.evolve import evolve
from ersde_lit.tuning.exact import exact_gaussian
from ersde_lit.tuning.learned import FREEDOMS, Freedom, LearnedTable
from ersde_lit.tuning.objectives import (
    EnergyDistance,
    ImageFeatures,
    KernelDistance,
    SetDistance,
    SumOfDistances,
    Teacher,
)
from ersde_lit.tuning.plan import plan_levels
from ersde_lit.tuning.problem import LEARNING, STOPPING, Objective, Problem
from ersde_lit.tuning.rows import full_history
from ersde_lit.tuning.tune import Tuned, learnable, quiet_trainer, starts, tune
from ersde_lit.tuning.tuner import TableTuner

__all__ = [
    "FREEDOMS",
    "LEARNING",
    "STAGES",
    "STOPPING",
    "EnergyDistance",
    "Freedom",
    "ImageFeatures",
    "KernelDistance",
    "LearnedTable",
    "Objective",
    "Problem",
    "SetDistance",
    "Stage",
    "SumOfDistances",
    "TableTuner",
    "Teacher",
    "Tuned",
    "evolve",
    "exact_gaussian",
    "full_history",
    "learnable",
    "plan_levels",
    "quiet_trainer",
    "starts",
    "tune",
]
