"""Operations: each with an eager reference, and faster ones in C++ (csrc) and Triton (kernels) held to it."""

from pgraft_fast.ops.anderson_mix import anderson_mix
from pgraft_fast.ops.backend import BACKENDS, use_backend
from pgraft_fast.ops.fixed_point_update import fixed_point_update
from pgraft_fast.ops.gather_rows import gather_rows
from pgraft_fast.ops.partial_noise import partial_noise
from pgraft_fast.ops.philox import philox_normal, philox_words, words_to_uniform
from pgraft_fast.ops.reward_filter import Filtered, reward_filter
from pgraft_fast.ops.solver_step import COLUMNS, solver_step
from pgraft_fast.ops.solver_steps import SolverSteps
from pgraft_fast.ops.weighted_mse import weighted_mse

__all__ = [
    "BACKENDS",
    "COLUMNS",
    "Filtered",
    "SolverSteps",
    "anderson_mix",
    "fixed_point_update",
    "gather_rows",
    "partial_noise",
    "philox_normal",
    "philox_words",
    "reward_filter",
    "solver_step",
    "use_backend",
    "weighted_mse",
    "words_to_uniform",
]
