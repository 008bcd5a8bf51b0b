# Sourced by train.sh, eval.sh and test.sh: makes .venv and installs into it what is missing.
# usage: . scripts/install.sh requirements.txt
set -euo pipefail
caller=$PWD # where relative paths among the arguments start from
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
requirements=$1
python=$root/.venv/bin/python

# A second call at the same time waits for the first, where the checkout can be written.
{ exec 9>.venv.lock && flock 9; } 2>/dev/null || true
if [ ! -x "$python" ]; then
    base=${PYTHON:-python3}
    command -v "$base" >/dev/null || { echo "error: $base was not found; install Python 3.11 or newer, or set PYTHON" >&2; exit 2; }
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "error: $("$base" -V) is too old; install Python 3.11 or newer, or set PYTHON" >&2; exit 2; }
    echo "making .venv with $("$base" -V)"
    "$base" -m venv .venv || { rm -rf .venv; echo "error: python -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 2; }
fi

# The stamp names what is installed, so that a second call costs nothing and a changed pin reinstalls.
# requirements-dev.txt holds all of requirements.txt.
wanted=$(cat requirements*.txt | sha256sum | cut -d' ' -f1)
installed() { [ "$(cat ".venv/.installed-${1%.txt}" 2>/dev/null || true)" = "$wanted" ]; }
if ! installed "$requirements" && ! { [ "$requirements" = requirements.txt ] && installed requirements-dev.txt; }; then
    "$python" -m pip --version >/dev/null 2>&1 ||
        { echo "error: .venv has no pip; remove that folder, and the same command makes it anew" >&2; exit 2; }
    rm -f .venv/.installed-* # other pins may follow
    echo "installing $requirements into .venv (a minute or two)"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
        { echo "error: pip could not install $requirements; its message is above" >&2; exit 2; }
    echo "$wanted" >".venv/.installed-${requirements%.txt}"
fi
{ exec 9>&-; } 2>/dev/null || true
