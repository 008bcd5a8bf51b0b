"""Train PaMoRL on a DeepMind Control task::

    python -u -O train.py -n "walker_walk-pwm" -config_path config_files/dmc.yaml \\
        -obs_type proprio -env_name walker_walk -device cuda:0 -seed 1
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any directory

from pwm_core.commands import cli
from pwm_core.config import Config
from pwm_core.domain import make_domain
from pwm_dmc.action_repeat import resolve
from pwm_dmc.benchmark import BENCHMARK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``-obs_type``, which stands for ``-set BasicSettings.ObsType=...``."""
    parser.add_argument(
        "-obs_type", choices=["proprio", "visual"], help="vectors or pixels (the config's)"
    )


def overrides(arguments: argparse.Namespace) -> list[str]:
    """The ``-set`` override that ``-obs_type`` stands for."""
    return [] if arguments.obs_type is None else [f"BasicSettings.ObsType={arguments.obs_type}"]


def env_bytes(config: Config) -> int:
    """Bytes of memory per environment, measured with 32 quadrupeds and 32 walkers.

    Rendering takes most of them.
    """
    return 12_000_000 if config.BasicSettings.ObsType == "proprio" else 90_000_000


DMC = make_domain(
    "dmc",
    example_task="walker_walk",
    resolve=resolve,
    env_bytes=env_bytes,
    quick_task="cartpole_balance",
    add_arguments=add_arguments,
    overrides=overrides,
    benchmark=BENCHMARK,
)

if __name__ == "__main__":
    cli.train_command(DMC)
