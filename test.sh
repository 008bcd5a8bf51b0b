#!/usr/bin/env bash
# Run the tests: ./test.sh; with --all the slow ones too (learning, full size); other flags go to
# pytest, as in ./test.sh -k scan
. "$(dirname "${BASH_SOURCE[0]}")/scripts/install.sh" requirements-dev.txt
phases=("not slow and not long")
arguments=()
for argument in "$@"; do
    if [ "$argument" = --all ]; then phases+=(slow); else arguments+=("$argument"); fi
done
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -c "from importlinter.cli import lint_imports_command as check; check()" --no-logo
result=5 # pytest's code for: no test was selected
for phase in "${phases[@]}"; do
    # Several processes, each with one file at a time and one thread. Slow tests start processes of
    # their own, and the files that take longest come first; see tests/conftest.py.
    command=(env OMP_NUM_THREADS=1 "$python" -m pytest -m "$phase" -n auto --dist loadfile)
    case $phase in
    slow) command+=(--maxprocesses 2 --no-loadscope-reorder) ;;
    *) command+=(--maxprocesses 4) ;;
    esac
    code=0
    "${command[@]}" "${arguments[@]}" || code=$?
    case $code in 0) result=0 ;; 5) ;; *) exit $code ;; esac
done
exit $result
