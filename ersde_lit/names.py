"""Names of solvers, grids and stages, and limits of the noise, also for a command line that imports no torch."""

from typing import Literal, get_args

SOLVERS = (
    "er_sde", "euler", "ddim", "ddpm", "dpm++2m", "dpm++2m_heun", "dpm++3m", "sde_dpm++2m", "unipc2", "unipc3", "sa",
    "ipndm", "deis",
)  # fmt: skip
SAMPLERS = ("default", "noisy", "heun")  # without a table
GRIDS = ("edm", "log_uniform", "poly_exponential", "vp_linear", "vp_cosine", "vp_discrete", "iddpm")

Stage = Literal["grid", "drift", "noise"]  # of learning a table, in this order
STAGES: tuple[Stage, ...] = get_args(Stage)

CARRIED = "carried"  # the tables that a checkpoint carries
TABLES = ".tables"  # the ending of files of tables

MAX_SEED = 2**48 - 1
MAX_STEPS = 2**15 - 1  # network calls of a run
