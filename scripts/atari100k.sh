#!/usr/bin/env bash
# Atari 100k: train, evaluate and collect games, several side by side; goes on where it stopped.
#
#   scripts/atari100k.sh Pong Boxing Breakout                  full config, seed 1
#   scripts/atari100k.sh -jobs 4 -seeds 1,2,3 -device cuda:0 Pong Boxing
#   scripts/atari100k.sh -config_path config_files/atari_tiny.yaml -suffix tiny -device cpu Pong
. "$(dirname "${BASH_SOURCE[0]}")/install.sh" requirements.txt
exec "$python" -m scripts.campaign atari "$@"
