"""Evaluate a run on its DeepMind Control task::

    python -u -O eval.py -env_name walker_walk -n "walker_walk-pwm" \\
        -config_path config_files/dmc.yaml -obs_type proprio -device cuda:0 -seed 1
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any directory

from pwm_core.commands import cli
from pwm_dmc.train import DMC

if __name__ == "__main__":
    cli.eval_command(DMC)
