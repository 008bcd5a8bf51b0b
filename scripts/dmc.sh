#!/usr/bin/env bash
# DeepMind Control, 16 tasks: scripts/dmc.sh [tiny] [flags of python -m sweep, as --dry-run]
#
#   scripts/dmc.sh          the full model, from proprioception and from pixels, 5 seeds
#   scripts/dmc.sh tiny     the model that one CPU core carries, from proprioception, 3 seeds
. "$(dirname "${BASH_SOURCE[0]}")/install.sh" requirements.txt
sweep=dmc
if [ "${1:-}" = tiny ]; then
    sweep=dmc_tiny
    shift
fi
cd "$caller"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -P -m sweep config_files/sweeps/$sweep.yaml "$@"
