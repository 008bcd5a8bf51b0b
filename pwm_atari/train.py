"""Train PaMoRL on an Atari game::

    python -u -O train.py -n "Pong-life_done-pwm-100k" -seed 1 \\
        -config_path config_files/atari.yaml -env_name "ALE/Pong-v5" -device cuda:0
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any directory

from pwm_atari import actor_critic, envs, replay_buffer, world_model
from pwm_atari.benchmark import BENCHMARK
from pwm_core import cli
from pwm_core.domain import Domain
from pwm_core.train import train

ATARI = Domain(
    name="atari",
    defaults="config_files/atari.yaml",
    example_task="ALE/Pong-v5",
    check_task=envs.check_task,
    make_env=envs.make_env,
    transition=replay_buffer.transition,
    make_world_model=world_model.make_world_model,
    make_actor_critic=actor_critic.make_actor_critic,
    protocol=envs.describe_protocol,
    benchmark=BENCHMARK,
)

if __name__ == "__main__":
    cli.run(train, ATARI)
