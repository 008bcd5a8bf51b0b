"""The interface between a domain and the shared code."""

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
    """A family of environments, and the parts of PaMoRL that are special to it.

    Attributes:
        name: appears in messages, the tracker's project and the score files.
        defaults: path of the domain's full config, on which its other configs are based.
        example_task: name of a task, for the help text.
        check_task: raises UserError for a task or a config that the domain does not support.
        make_env: (config, task, number of environments, seed) -> the environments.
        transition: (config, environments) -> the fields that the replay stores.
        make_world_model: (config, environments) -> the world model.
        make_actor_critic: (config, environments) -> actor and critic.
        protocol: (config) -> the protocol's settings, for the score files.
        resolve: (config, task) -> the config after filling in the settings that depend on the task.
        add_arguments: adds the domain's own flags.
        overrides: (parsed arguments) -> the ``-set`` overrides that those flags stand for.
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
    resolve: Callable[[Config, str], Config] = lambda config, task: config
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    overrides: Callable[[argparse.Namespace], list[str]] = lambda arguments: []
