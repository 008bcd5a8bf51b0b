"""The number of simulator steps per action that ``FrameSkip: task`` stands for."""

from __future__ import annotations

from pwm_core.config import Config

ACTION_REPEATS = {
    "cartpole": 8,
    "reacher": 4,
    "cheetah": 4,
    "ball_in_cup": 4,
    "cup": 4,
    "finger": 2,
    "walker": 2,
}
"""Simulator steps per action, by dm_control's domains, as in PlaNet (Hafner et al., 2019)."""

OTHER_REPEATS = 4
"""Simulator steps per action of all other domains, as in CURL (Laskin et al., 2020)."""


def action_repeat(task: str) -> int:
    """Simulator steps per agent step of ``task`` under ``FrameSkip: task``."""
    for domain, repeat in ACTION_REPEATS.items():
        if task.startswith(f"{domain}_"):
            return repeat
    return OTHER_REPEATS


def resolve(config: Config, task: str) -> Config:
    """``config`` with the task's number in place of ``FrameSkip: task``."""
    basic = config.BasicSettings
    if basic.FrameSkip != "task":
        return config
    basic = basic.model_copy(update={"FrameSkip": action_repeat(task)})
    return config.model_copy(update={"BasicSettings": basic})
