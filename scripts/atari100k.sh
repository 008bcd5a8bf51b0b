#!/usr/bin/env bash
# Atari 100k, 26 games x 5 seeds: scripts/atari100k.sh [flags of python -m sweep, as --dry-run]
. "$(dirname "${BASH_SOURCE[0]}")/install.sh" requirements.txt
exec "$python" -m sweep config_files/sweeps/atari100k.yaml "$@"
