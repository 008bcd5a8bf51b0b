"""Record a trajectory on an Atari game, for ``train.py -trajectory_path``.

Random play or a run's last checkpoint takes the steps::

    python -m pwm_atari.record -env_name "ALE/MsPacman-v5" -o MsPacman.npz -steps 10000
    python -m pwm_atari.record -n NAME -o MsPacman.npz
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any directory

from pwm_atari.train import ATARI
from pwm_core.commands import cli

if __name__ == "__main__":
    cli.record_command(ATARI)
