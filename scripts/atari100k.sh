#!/usr/bin/env bash
# Atari 100k, 26 games x 5 seeds: scripts/atari100k.sh [flags of python -m sweep, as --dry-run]
. "$(dirname "${BASH_SOURCE[0]}")/install.sh" requirements.txt
cd "$caller"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -P -m sweep config_files/sweeps/atari100k.yaml "$@"
