"""The interface between a domain and the shared code."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pwm_core.config_file import load_config
from pwm_core.errors import UserError, closest
from pwm_core.paths import REPOSITORY

if TYPE_CHECKING:
    from pwm_core.config import Config
    from pwm_core.envs import VectorEnv
    from pwm_core.models.actor_critic import ActorCritic
    from pwm_core.models.world_model import WorldModel
    from pwm_core.training.replay_buffer import TransitionSpec


@dataclass(frozen=True)
class Benchmark:
    """The tasks of a domain's benchmark.

    Sweeps and the names of runs use a task's short name, such as ``Pong``. The flag ``-env_name``
    takes the full name, such as ``ALE/Pong-v5``.

    Attributes:
        lists: named lists of short names; ``all`` is the whole benchmark.
        full_name: (short or full name) -> the full name.
        short_name: (short or full name) -> the short name.
        title: the benchmark's name in reports.
        score_name: the name of an episode's return.
        frame_name: the plural name of the steps that ``FrameSkip`` counts.
        full_score: the largest return of an episode, by which scores are divided; None if published
            random and human scores normalise them.
        budget: (short name, observation type) -> the benchmark's environment steps (frames or
            simulator steps); None if the full config has the length of a run.
    """

    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    full_name: Callable[[str], str] = lambda task: task
    short_name: Callable[[str], str] = lambda task: task
    title: str = ""
    score_name: str = "return"
    frame_name: str = "frames"
    full_score: float | None = None
    budget: Callable[[str, str], int | None] = lambda task, obs_type: None


@dataclass(frozen=True)
class Domain:
    """A family of environments, and the parts of PaMoRL that are special to it.

    Attributes:
        name: the name in messages, score files and the tracker; the package is ``pwm_<name>``.
        defaults: path of the domain's full config, on which its other configs are based.
        example_task: name of a task, for the help text.
        check_task: raises UserError for a task or a config that the domain does not support.
        make_env: (config, task, number of environments, seed) -> the environments.
        transition: (config, environments) -> the fields that the replay stores.
        make_world_model: (config, environments) -> the world model.
        make_actor_critic: (config, environments) -> actor and critic.
        protocol: (config) -> the protocol's settings, for the score files.
        quick_task: the default task of ``./train.sh``; None means ``example_task``.
        env_bytes: (config) -> measured bytes of memory per environment.
        resolve: (config, task) -> the config after filling in the settings that depend on the task.
        add_arguments: adds the domain's own flags.
        overrides: (parsed arguments) -> the ``-set`` overrides that those flags stand for.
        benchmark: the tasks of the domain's benchmark, for sweeps and reports.
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
    quick_task: str | None = None
    env_bytes: Callable[[Config], int] = lambda config: 1_000_000
    resolve: Callable[[Config, str], Config] = lambda config, task: config
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    overrides: Callable[[argparse.Namespace], list[str]] = lambda arguments: []
    benchmark: Benchmark = field(default_factory=Benchmark)


def make_domain(name: str, **special: Any) -> Domain:
    """The domain of the package ``pwm_<name>``, whose modules have the usual names.

    Args:
        name: of the domain.
        special: attributes of :class:`Domain` that do not follow from the name.
    """
    package = f"pwm_{name}"
    return Domain(
        name=name,
        defaults=f"config_files/{name}.yaml",
        check_task=_deferred(f"{package}.envs", "check_task"),
        make_env=_deferred(f"{package}.envs", "make_env"),
        protocol=_deferred(f"{package}.envs", "describe_protocol"),
        transition=_deferred(f"{package}.replay_buffer", "transition"),
        make_world_model=_deferred(f"{package}.world_model", "make_world_model"),
        make_actor_critic=_deferred(f"{package}.actor_critic", "make_actor_critic"),
        **special,
    )


def _deferred(module: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of ``module``, which is imported when the function is first called.

    Importing environments and networks takes seconds, and wrong flags are reported before that.
    """

    def call(*arguments: Any, **keywords: Any) -> Any:
        return getattr(import_module(module), name)(*arguments, **keywords)

    return call


def check_task(domain: Domain, config: Config, task: str, config_path: str | None = None) -> None:
    """Check that ``domain`` supports the task and the config.

    Args:
        config: the resolved config.
        config_path: the config file that the user gave, if any.

    Raises:
        UserError: the domain does not support them. If another domain supports the task or the
            file, the message names that domain.
    """
    try:
        domain.check_task(config, task)
    except UserError as error:
        raise UserError(f"{error}{_whose(domain, task, config_path)}") from None


def _whose(domain: Domain, task: str, config_path: str | None) -> str:
    """A hint at another domain that supports the task or the file, or an empty string."""
    for other in map(find_domain, domain_names()):
        if other.name == domain.name:
            continue
        if _accepts(other, other.defaults, task):
            return f"; it is a task of pwm_{other.name}/"
        theirs = config_path and _accepts(other, config_path, other.example_task)
        if theirs and not _accepts(domain, config_path, domain.example_task):
            return f"; {config_path} is a config of pwm_{other.name}/"
    return ""


def _accepts(domain: Domain, config_path: str, task: str) -> bool:
    """Whether ``domain`` can train ``task`` with the config file at ``config_path``."""
    try:
        domain.check_task(load_config(config_path, defaults=domain.defaults), task)
    except (UserError, ImportError):  # the other domain's simulator may be missing
        return False
    return True


def domain_names() -> list[str]:
    """The names of all domains, from the packages ``pwm_<name>`` next to this package."""
    found = REPOSITORY.glob("pwm_*/train.py")
    names = sorted(path.parent.name.removeprefix("pwm_") for path in found)
    return [name for name in names if name != "core"]


def find_domain(name: str) -> Domain:
    """The domain of the package ``pwm_<name>``.

    Raises:
        UserError: there is no such domain.
    """
    names = domain_names()
    if name not in names:
        hint = closest(name, names) or f"; there are {', '.join(names)}"
        raise UserError(f"{name!r} is not a domain{hint}")
    module = import_module(f"pwm_{name}.train")
    return next(value for value in vars(module).values() if isinstance(value, Domain))
