"""Record a trajectory on a DeepMind Control task, for ``train.py -trajectory_path``.

Random play or a run's last checkpoint takes the steps::

    python -m pwm_dmc.record -env_name walker_walk -o walker.npz -steps 10000
    python -m pwm_dmc.record -n NAME -o walker.npz
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any directory

from pwm_core.commands import cli
from pwm_dmc.train import DMC

if __name__ == "__main__":
    cli.record_command(DMC)
