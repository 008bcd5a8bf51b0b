"""Evaluate a run on its Atari game::

    python -u -O eval.py -env_name "ALE/Pong-v5" -run_name "Pong-life_done-pwm-100k" \\
        -config_path config_files/atari.yaml -device cuda:0 -seed 1
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any directory

from pwm_atari.train import ATARI
from pwm_core.commands import cli

if __name__ == "__main__":
    cli.eval_command(ATARI)
