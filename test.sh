#!/usr/bin/env bash
# Run the tests: ./test.sh; with --all the slow ones too (learning, full size); other flags go to
# pytest, as in ./test.sh -k scan
. "$(dirname "${BASH_SOURCE[0]}")/scripts/install.sh" requirements-dev.txt
selection=(-m "not slow")
arguments=()
for argument in "$@"; do
    if [ "$argument" = --all ]; then selection=(); else arguments+=("$argument"); fi
done
$python -m ruff check .
$python -m ruff format --check .
exec $python -m pytest "${selection[@]}" "${arguments[@]}"
