"""What a run of a sweep is. Jobs load this, so nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One run: what ``train.py`` and ``eval.py`` are called with.

    Attributes:
        task: short name; ``env_name`` is the full one.
        config: paths of the config files, with commas between them.
        steps: agent steps of the whole run.
        frame_skip: environment steps of an agent step.
    """

    name: str
    domain: str
    task: str
    env_name: str
    variant: str
    seed: int
    config: str
    overrides: tuple[str, ...]
    steps: int
    frame_skip: int
