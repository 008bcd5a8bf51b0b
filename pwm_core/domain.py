"""What a domain tells the shared code about itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pwm_core.config import Config
from pwm_core.envs import VectorEnv
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.world_model import WorldModel
from pwm_core.training.replay_buffer import TransitionSpec


@dataclass(frozen=True)
class Benchmark:
    """The tasks that a domain is measured on.

    A short name, such as ``Pong``, is what sweeps and run names use; the full one, such as
    ``ALE/Pong-v5``, is what ``-env_name`` takes.

    Attributes:
        lists: named lists of short names; ``all`` is the whole benchmark.
        full_name: short or full name -> the full one.
        short_name: short or full name -> the short one.
        budget: short name and observation type -> the benchmark's environment steps (frames,
            simulator steps), or None where the full config says how long a run is.
    """

    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    full_name: Callable[[str], str] = lambda task: task
    short_name: Callable[[str], str] = lambda task: task
    budget: Callable[[str, str], int | None] = lambda task, obs_type: None


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
        benchmark: the tasks it is measured on, for sweeps.
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
    benchmark: Benchmark = field(default_factory=Benchmark)
