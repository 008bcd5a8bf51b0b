#!/usr/bin/env bash
# Evaluate a run: ./eval.sh [atari|dmc] -run_name NAME [any flag of eval.py]
. "$(dirname "${BASH_SOURCE[0]}")/scripts/install.sh" requirements.txt
domain=atari
case "${1:-}" in atari | dmc) domain=$1; shift ;; esac
cd "$caller"
exec $python -u -O "$root/pwm_$domain/eval.py" "$@"
