#!/usr/bin/env bash
# DeepMind Control: train, evaluate and collect tasks, several side by side; goes on where it stopped.
# Budgets are those of the published table, in simulator steps with the action repeat counted.
#
#   scripts/dmc.sh proprio cartpole_balance cup_catch          full config, seed 1
#   scripts/dmc.sh visual -jobs 4 -seeds 1,2,3 -device cuda:0 cartpole_balance
#   scripts/dmc.sh proprio -config_path config_files/dmc_tiny.yaml -suffix tiny -device cpu reacher_easy
. "$(dirname "${BASH_SOURCE[0]}")/install.sh" requirements.txt
case "${1:-}" in
proprio | visual) obs_type=$1; shift ;;
*) echo "error: scripts/dmc.sh OBS_TYPE TASK..., OBS_TYPE being proprio or visual" >&2; exit 2 ;;
esac
exec "$python" -m scripts.campaign dmc -obs_type "$obs_type" "$@"
