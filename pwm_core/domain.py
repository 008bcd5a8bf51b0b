"""What a domain tells the shared code about itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pwm_core.config import Config
from pwm_core.envs import VectorEnv
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.world_model import WorldModel
from pwm_core.training.replay_buffer import TransitionSpec


@dataclass(frozen=True)
class Domain:
    """A family of environments and how PaMoRL meets it.

    Attributes:
        name: for messages, the tracker's project and the score files.
        defaults: the domain's full config, the base of every other.
        example_task: a task's name, for the help text.
        check_task: raises UserError for a task or a config that the domain does not know.
        make_env: (config, task, number of environments, seed) -> the environments.
        transition: (config, environments) -> what the replay stores.
        make_world_model: (config, environments) -> the world model.
        make_actor_critic: (config, environments) -> actor and critic.
        protocol: (config) -> the protocol's settings, for the score files.
        add_arguments: adds the domain's own flags.
        overrides: (parsed arguments) -> ``-set`` overrides that those flags stand for.
        title: what people call it, for reports.
        score_name: what an episode's return is called.
        frame_name: what ``FrameSkip`` counts, in the plural.
        full_score: the most that an episode can return, which scores are divided by; None where
            published random and human scores normalise them.
        short_task: (task) -> its name in published tables.
    """

    name: str
    defaults: str
    example_task: str
    check_task: Callable[[Config, str], None]
    make_env: Callable[[Config, str, int, int], VectorEnv]
    transition: Callable[[Config, VectorEnv], TransitionSpec]
    make_world_model: Callable[[Config, VectorEnv], WorldModel]
    make_actor_critic: Callable[[Config, VectorEnv], ActorCritic]
    protocol: Callable[[Config], dict[str, Any]]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    overrides: Callable[[argparse.Namespace], list[str]] = lambda arguments: []
    title: str = ""
    score_name: str = "return"
    frame_name: str = "frames"
    full_score: float | None = None
    short_task: Callable[[str], str] = lambda task: task
