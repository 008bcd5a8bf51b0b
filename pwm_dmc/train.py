"""Train PaMoRL on a DeepMind Control task::

    python -u -O train.py -n "walker_walk-pwm" -config_path config_files/dmc.yaml \\
        -obs_type proprio -env_name walker_walk -device cuda:0 -seed 1
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any directory

from pwm_core import cli
from pwm_core.domain import Domain
from pwm_core.train import train
from pwm_dmc import actor_critic, envs, replay_buffer, world_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``-obs_type``, which stands for ``-set BasicSettings.ObsType=...``."""
    parser.add_argument("-obs_type", default=None, help="proprio or visual")


def overrides(arguments: argparse.Namespace) -> list[str]:
    """The ``-set`` override that ``-obs_type`` stands for."""
    envs.check_obs_type(arguments.obs_type)
    return [] if arguments.obs_type is None else [f"BasicSettings.ObsType={arguments.obs_type}"]


DMC = Domain(
    name="dmc",
    defaults="config_files/dmc.yaml",
    example_task="walker_walk",
    check_task=envs.check_task,
    make_env=envs.make_env,
    transition=replay_buffer.transition,
    make_world_model=world_model.make_world_model,
    make_actor_critic=actor_critic.make_actor_critic,
    protocol=envs.describe_protocol,
    resolve=envs.resolve,
    add_arguments=add_arguments,
    overrides=overrides,
)

if __name__ == "__main__":
    cli.run(train, DMC)
