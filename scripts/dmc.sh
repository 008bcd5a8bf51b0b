#!/usr/bin/env bash
# DeepMind Control, 16 tasks x 2 kinds of observation x 5 seeds: scripts/dmc.sh [flags of python -m sweep]
. "$(dirname "${BASH_SOURCE[0]}")/install.sh" requirements.txt
exec "$python" -m sweep config_files/sweeps/dmc.yaml "$@"
