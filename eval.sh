#!/usr/bin/env bash
# Evaluate a run: ./eval.sh -run_name NAME [any flag of eval.py]
. "$(dirname "${BASH_SOURCE[0]}")/scripts/install.sh" requirements.txt
cd "$caller"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -P -u -O -m pwm_core.commands.quickstart eval "$@"
