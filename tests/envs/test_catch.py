"""Catch as a task of Atari: its rules, its config and its checks."""

from __future__ import annotations

import numpy as np
import pytest

from pwm_atari.catch import CELLS, Catch
from pwm_atari.envs import check_task, describe_protocol, make_env
from pwm_atari.train import ATARI
from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.errors import UserError


def load(*overrides: str) -> Config:
    return load_config(
        "config_files/atari_catch.yaml", defaults="config_files/atari.yaml", overrides=overrides
    )


def test_following_the_ball_catches_it_and_running_away_does_not() -> None:
    env = make_env(load(), "Catch", 6, 3)
    assert isinstance(env, Catch)
    for away, expected in ((False, 1.0), (True, -1.0)):
        images = env.reset()
        returns: list[float] = []
        while len(returns) < 12:
            cells = images[:, ::8, ::8, 0]  # a ball is (255, 220, 60), the paddle (40, 160, 255)
            ball, paddle = (cells == 255).any(1).argmax(1), cells[:, -1].argmax(1)
            action = np.sign(ball - paddle) + 1
            if away:
                action = np.where(ball < CELLS // 2, 2, 0)
            step = env.step(action)
            images = step.obs
            returns += [episode.episode_return for episode in step.finished]
        assert np.mean(returns) == expected


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("BasicSettings.Protocol=pamorl", "Protocol = 'pamorl' is not valid: Catch needs catch"),
        ("BasicSettings.FrameSkip=4", "Catch needs 1; use -config_path .*/atari_catch.yaml"),
        ("BasicSettings.ObsShape=[32, 32, 3]", "Catch needs \\(64, 64, 3\\)"),
        ("BasicSettings.ObsType=proprio", "Catch needs visual"),
    ],
)
def test_catch_has_one_set_of_rules(override: str, says: str) -> None:
    check_task(load(), "Catch")
    with pytest.raises(UserError, match=says):
        check_task(load(override), "Catch")


def test_games_of_atari_do_not_know_the_protocol_of_catch() -> None:
    with pytest.raises(UserError, match="'catch' is not valid: it must be pamorl or standard"):
        check_task(load(), "ALE/Pong-v5")
    assert describe_protocol(load()) == {"name": "catch"}
    assert ATARI.benchmark.full_name("Catch") == ATARI.benchmark.short_name("Catch") == "Catch"
