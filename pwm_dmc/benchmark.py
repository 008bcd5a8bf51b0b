"""The 16 tasks of the published table, and the training budget of each."""

from __future__ import annotations

from pwm_core.domain import Benchmark

SHORT_TASKS = (
    *("cartpole_balance", "cartpole_balance_sparse", "cartpole_swingup", "cup_catch"),
    *("finger_spin", "pendulum_swingup", "reacher_easy", "reacher_hard"),
)
LONG_TASKS = (
    *("cartpole_swingup_sparse", "cheetah_run", "finger_turn_easy", "finger_turn_hard"),
    *("hopper_hop", "hopper_stand", "quadruped_run", "quadruped_walk"),
)
"""Tasks with twice the budget of the others."""


def budget(task: str, obs_type: str) -> int:
    """Simulator steps of a run in the published table.

    They are 100k from proprioception and 200k from pixels, and twice as many for
    :data:`LONG_TASKS`.
    """
    return {"proprio": 100_000, "visual": 200_000}[obs_type] * (1 + (task in LONG_TASKS))


def short_name(task: str) -> str:
    """The name in published tables: ``ball_in_cup_catch`` -> ``cup_catch``."""
    return task.replace("ball_in_cup_", "cup_")


BENCHMARK = Benchmark(
    lists={"all": SHORT_TASKS + LONG_TASKS, "short": SHORT_TASKS, "long": LONG_TASKS},
    short_name=short_name,
    title="DeepMind Control",
    frame_name="simulator steps",
    full_score=1000,
    budget=budget,
)
