"""Train PaMoRL on an Atari game::

    python -u -O train.py -n "Pong-life_done-pwm-100k" -seed 1 \\
        -config_path config_files/atari.yaml -env_name "ALE/Pong-v5" -device cuda:0
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any directory

from pwm_core import cli
from pwm_core.domain import Domain, deferred

ATARI = Domain(
    name="atari",
    defaults="config_files/atari.yaml",
    example_task="ALE/Pong-v5",
    check_task=deferred("pwm_atari.envs:check_task"),
    make_env=deferred("pwm_atari.envs:make_env"),
    transition=deferred("pwm_atari.replay_buffer:transition"),
    make_world_model=deferred("pwm_atari.world_model:make_world_model"),
    make_actor_critic=deferred("pwm_atari.actor_critic:make_actor_critic"),
    protocol=deferred("pwm_atari.envs:describe_protocol"),
    env_bytes=lambda config: 1_300_000,
)

if __name__ == "__main__":
    cli.train_command(ATARI)
