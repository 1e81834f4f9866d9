"""Rank and world size of this process, from arguments, torchrun or SLURM."""

from __future__ import annotations

import os
from collections.abc import Mapping

from camae.errors import CamaeError


def rank_and_world(
    rank: int | None = None, world: int | None = None, environment: Mapping[str, str] | None = None
) -> tuple[int, int]:
    """(rank, world): the arguments, else what torchrun, a SLURM array or an srun step says, else (0, 1).

    torchrun: RANK, WORLD_SIZE. SLURM array: SLURM_ARRAY_TASK_ID with _MIN, _MAX and _STEP. srun: SLURM_PROCID of
    SLURM_STEP_NUM_TASKS (a batch script's own shell has none, and is a single process). An array of which each
    task is itself several ranks counts both.
    Raises CamaeError for a rank that is not below its world.
    """
    env = os.environ if environment is None else environment
    if (rank is None) != (world is None):
        raise CamaeError("rank and world belong together: give both, e.g. rank=0, world=4")
    if rank is None or world is None:
        rank, world = _task(env)
        outer, tasks = _array(env)
        rank, world = outer * world + rank, tasks * world
    if not 0 <= rank < world:
        raise CamaeError(f"rank {rank} is not one of 0 to {world - 1}: there are {world} processes")
    return rank, world


def _task(env: Mapping[str, str]) -> tuple[int, int]:
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in env and world in env:
            return _number(env, rank), _number(env, world)
    return 0, 1


def _array(env: Mapping[str, str]) -> tuple[int, int]:
    if "SLURM_ARRAY_TASK_ID" not in env or "SLURM_ARRAY_TASK_MAX" not in env:
        return 0, 1
    first = _number(env, "SLURM_ARRAY_TASK_MIN") if "SLURM_ARRAY_TASK_MIN" in env else 0
    step = _number(env, "SLURM_ARRAY_TASK_STEP") if "SLURM_ARRAY_TASK_STEP" in env else 1
    tasks = (_number(env, "SLURM_ARRAY_TASK_MAX") - first) // step + 1
    number = (_number(env, "SLURM_ARRAY_TASK_ID") - first) // step
    if int(env.get("SLURM_ARRAY_TASK_COUNT", tasks)) != tasks:
        raise CamaeError("the SLURM array has gaps, so its tasks cannot share a screen; submit it as 0-N")
    return number, tasks


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise CamaeError(f"the environment variable {name} is {env[name]!r}, not a number") from None
