"""The 26 games of Atari 100k (Kaiser et al., 2020)."""

from __future__ import annotations

from pwm_core.domain import Benchmark

GAMES = (
    *("Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout"),
    *("ChopperCommand", "CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero"),
    *("Jamesbond", "Kangaroo", "Krull", "KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert"),
    *("RoadRunner", "Seaquest", "UpNDown"),
)


CATCH = "Catch"
"""A small game of our own (:mod:`pwm_atari.catch`); its short and its full name."""


def short_name(task: str) -> str:
    """``ALE/Pong-v5`` -> ``Pong``."""
    return task.removeprefix("ALE/").removesuffix("-v5")


def full_name(task: str) -> str:
    """``Pong`` -> ``ALE/Pong-v5``."""
    return CATCH if task == CATCH else f"ALE/{short_name(task)}-v5"


BENCHMARK = Benchmark(
    lists={"all": GAMES},
    full_name=full_name,
    short_name=short_name,
    title="Atari",
    score_name="game score",
)
