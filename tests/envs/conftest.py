"""Fixtures of the environments' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pwm_core.envs import VectorEnv
from pwm_dmc.envs import DMCEnv


@pytest.fixture
def make() -> Iterator:
    """Makes a ``DMCEnv`` with the usual arguments, which is closed after the test."""
    made: list[VectorEnv] = []

    def _make(task: str, num_envs: int = 1, seed: int = 0, **overrides) -> VectorEnv:
        arguments = {"obs_type": "proprio", "frame_skip": 2} | overrides
        made.append(DMCEnv(task, num_envs, seed, **arguments))
        return made[-1]

    yield _make
    for env in made:
        env.close()
