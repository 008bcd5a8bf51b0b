#!/usr/bin/env bash
# Train and evaluate PaMoRL from nothing: makes .venv, installs, trains, evaluates, draws the curve.
#
#   ./train.sh                                      Pong, tiny config on a CPU, full one on CUDA
#   ./train.sh atari -env_name ALE/Boxing-v5 -seed 3 ...     any flag of train.py
#   ./train.sh dmc                                  cartpole_balance from proprioception
. "$(dirname "${BASH_SOURCE[0]}")/scripts/install.sh" requirements.txt

domain=atari
case "${1:-}" in atari | dmc) domain=$1; shift ;; esac

# The last value of a flag among the arguments, or a default.
flag() { # flag NAME DEFAULT ARGUMENTS...
    local name=$1 value=$2; shift 2
    while [ $# -gt 1 ]; do [ "$1" = "$name" ] && value=$2; shift; done
    echo "$value"
}
given() { # given NAME ARGUMENTS...
    local name=$1; shift
    for argument in "$@"; do [ "$argument" = "$name" ] && return 0; done
    return 1
}

if given -h "$@" || given --help "$@"; then exec $python "pwm_$domain/train.py" -h; fi

if [ "$domain" = atari ]; then task=ALE/Pong-v5; else task=cartpole_balance; fi
device=$(flag -device auto "$@")
[ "$device" = auto ] && device=$($python -c 'import torch; print("cuda:0" if torch.cuda.is_available() else "cpu")')
task=$(flag -env_name "$task" "$@")
seed=$(flag -seed 1 "$@")
case "$device" in cpu*) size=_tiny reason="no CUDA device is used" ;; *) size="" reason="training on $device" ;; esac
config=config_files/$domain$size.yaml
if given -config_path "$@"; then
    config=$(flag -config_path "$config" "$@") size=""
else
    echo "$reason: the config is $config"
fi
short=${task#ALE/}
name=${short%-v5}${size/_/-}-seed$seed-$(date +%Y%m%d-%H%M%S)
name=$(flag -run_name "$(flag -n "$name" "$@")" "$@")

arguments=()
given -n "$@" || given -run_name "$@" || arguments+=(-n "$name")
given -env_name "$@" || arguments+=(-env_name "$task")
given -device "$@" || arguments+=(-device "$device")
given -seed "$@" || arguments+=(-seed "$seed")
given -config_path "$@" || arguments+=(-config_path "$config")

cd "$caller"
$python -u -O "$root/pwm_$domain/train.py" "${arguments[@]}" "$@"
$python -u -O "$root/pwm_$domain/eval.py" -run_name "$name" -device "$device" -seed "$seed"
cd "$root"
$python -m pwm_core.plot "ckpt/$name" -o "ckpt/$name/curve.png"
echo "checkpoints: $root/ckpt/$name/checkpoints"
echo "metrics:     $root/ckpt/$name/metrics.jsonl"
echo "scores:      $root/eval_result/$name.csv"
