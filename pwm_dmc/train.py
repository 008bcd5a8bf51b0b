"""Train PaMoRL on a DeepMind Control task::

    python -u -O train.py -n "walker_walk-pwm" -config_path config_files/dmc.yaml \\
        -obs_type proprio -env_name walker_walk -device cuda:0 -seed 1
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any directory

from pwm_core import cli
from pwm_core.config import Config
from pwm_core.domain import Domain, deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``-obs_type``, which stands for ``-set BasicSettings.ObsType=...``."""
    parser.add_argument(
        "-obs_type", choices=["proprio", "visual"], help="vectors or pixels (the config's)"
    )


def overrides(arguments: argparse.Namespace) -> list[str]:
    """What ``-obs_type`` stands for."""
    return [] if arguments.obs_type is None else [f"BasicSettings.ObsType={arguments.obs_type}"]


def env_bytes(config: Config) -> int:
    """Measured with 32 quadrupeds and 32 walkers; drawing takes most of it."""
    return 12_000_000 if config.BasicSettings.ObsType == "proprio" else 90_000_000


DMC = Domain(
    name="dmc",
    defaults="config_files/dmc.yaml",
    example_task="walker_walk",
    check_task=deferred("pwm_dmc.envs:check_task"),
    make_env=deferred("pwm_dmc.envs:make_env"),
    transition=deferred("pwm_dmc.replay_buffer:transition"),
    make_world_model=deferred("pwm_dmc.world_model:make_world_model"),
    make_actor_critic=deferred("pwm_dmc.actor_critic:make_actor_critic"),
    protocol=deferred("pwm_dmc.envs:describe_protocol"),
    resolve=deferred("pwm_dmc.envs:resolve"),
    env_bytes=env_bytes,
    quick_task="cartpole_balance",
    add_arguments=add_arguments,
    overrides=overrides,
)

if __name__ == "__main__":
    cli.train_command(DMC)
