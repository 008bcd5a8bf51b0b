"""Train PaMoRL on an Atari game::

    python -u -O train.py -n "Pong-life_done-pwm-100k" -seed 1 \\
        -config_path config_files/atari.yaml -env_name "ALE/Pong-v5" -device cuda:0
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any directory

from pwm_atari.benchmark import BENCHMARK
from pwm_core.commands import cli
from pwm_core.domain import make_domain

ATARI = make_domain(
    "atari",
    example_task="ALE/Pong-v5",
    env_bytes=lambda config: 1_300_000,
    benchmark=BENCHMARK,
)

if __name__ == "__main__":
    cli.train_command(ATARI)
