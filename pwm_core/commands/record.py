"""The command ``record.py`` of every domain: play, and write the steps as a recorded trajectory."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from pwm_core.commands.cli import read_config
from pwm_core.commands.trained_run import load_agent, open_run
from pwm_core.config import Config
from pwm_core.domain import Domain, check_task
from pwm_core.envs import VectorEnv
from pwm_core.errors import UserError
from pwm_core.runs.recording import Recording, write_recording
from pwm_core.runs.tracking import progress_bar
from pwm_core.runtime import (
    find_device,
    memory_advice,
    seed_everything,
    use_precision,
    use_threads,
)
from pwm_core.training.agent import Agent
from pwm_core.training.evaluation import RandomAgent

RECORDING_SEEDS = 2**33
"""Added to the seed, so that neither a training nor an evaluation episode is repeated."""


@memory_advice("use -device cpu")
def run(domain: Domain, arguments: argparse.Namespace) -> None:
    """Record ``-steps`` steps of a run's checkpoint, or of random play, into ``-o``.

    Raises:
        UserError: the flags, the run or the machine do not allow it.
    """
    if arguments.output.suffix != ".npz" or arguments.output.exists():
        raise UserError(f"-o {arguments.output} must be a new file named *.npz")
    trained = open_run(domain, arguments) if arguments.name else None
    if trained is None:
        config, task = _random_play(domain, arguments)
    else:
        config, task = trained.config, trained.task
    use_threads(config.BasicSettings.Threads)
    device = find_device(arguments.device)
    use_precision(config.BasicSettings, device)
    rng = seed_everything(config.BasicSettings.Seed)
    env = domain.make_env(config, task, 1, config.BasicSettings.Seed + RECORDING_SEEDS)
    try:
        agent: Agent | RandomAgent = RandomAgent(env, int(rng.integers(2**32)))
        about = {"task": task, "seed": config.BasicSettings.Seed}
        about |= {"protocol": domain.protocol(config), "agent": "random play"}
        if trained is not None:
            (step,) = trained.folder.select(arguments.checkpoint)
            agent = load_agent(domain, trained, env, step, device)
            about["agent"] = f"{trained.folder.name}, step {step}"
        recording = play(agent, env, arguments.steps, about, greedy=arguments.greedy)
    finally:
        env.close()
    write_recording(arguments.output, recording)
    print(f"{arguments.steps} steps of {about['agent']} on {task}: {arguments.output}")


def _random_play(domain: Domain, arguments: argparse.Namespace) -> tuple[Config, str]:
    """Config and task of the flags.

    Raises:
        UserError: there is no task, or the domain does not support it.
    """
    if arguments.env_name is None:
        raise UserError("random play needs -env_name; to record a run, name it with -n")
    config, task = read_config(arguments, domain), arguments.env_name
    check_task(domain, config, task, arguments.config_path)
    return domain.resolve(config, task), task


def play(
    agent: Agent | RandomAgent,
    env: VectorEnv,
    steps: int,
    about: dict[str, Any],
    *,
    greedy: bool = False,
    phase: str = "recording",
) -> Recording:
    """The ``steps`` steps that ``agent`` takes in the single environment ``env``.

    Args:
        about: where the recording is from.
        greedy: take the policy's mode instead of a sample.
        phase: what the progress bar shows in front.
    """
    state, obs, is_first = agent.initial_state(1), env.reset(), np.ones(1, bool)
    taken: dict[str, list[np.ndarray]] = {
        name: [] for name in ("obs", "action", "reward", "done", "is_first")
    }
    returns = []
    with progress_bar(steps, "step", phase=phase) as bar:
        for _ in range(steps):
            action = agent.act(obs, is_first, state, greedy=greedy)
            result = env.step(action)
            step = (obs, action, result.reward, result.done, is_first)
            for values, value in zip(taken.values(), step, strict=True):
                values.append(np.array(value[0]))
            obs, is_first = result.obs, result.is_first
            returns += [finished.episode_return for finished in result.finished]
            bar.update()
    arrays = {name: np.stack(values) for name, values in taken.items()}
    return Recording(**arrays, about=about | {"returns": returns})
