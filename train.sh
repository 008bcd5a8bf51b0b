#!/usr/bin/env bash
# Train and evaluate PaMoRL from nothing: makes .venv, installs, trains, evaluates, draws the curve.
#
#   ./train.sh                      a cartpole, tiny config on a CPU, full one on CUDA
#   ./train.sh atari                Pong
#   ./train.sh atari -env_name ALE/Boxing-v5 -seed 3 ...     any flag of train.py
#   ./train.sh -resume                              the newest unfinished run of the same flags
. "$(dirname "${BASH_SOURCE[0]}")/scripts/install.sh" requirements.txt
cd "$caller"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -P -u -O -m pwm_core.commands.quickstart train "$@"
