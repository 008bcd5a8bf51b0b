# Sourced by train.sh, eval.sh and test.sh: makes .venv and installs into it what is missing.
# usage: . scripts/install.sh requirements.txt
set -euo pipefail
caller=$PWD # where relative paths among the arguments start from
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
requirements=$1
python=$root/.venv/bin/python

if [ ! -x "$python" ]; then
    base=${PYTHON:-python3}
    command -v "$base" >/dev/null || { echo "error: $base was not found; install Python 3.11 or newer, or set PYTHON" >&2; exit 2; }
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "error: $("$base" -V) is too old; install Python 3.11 or newer, or set PYTHON" >&2; exit 2; }
    echo "making .venv with $("$base" -V)"
    "$base" -m venv .venv || { rm -rf .venv; echo "error: python -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 2; }
fi

# The stamp names what is installed, so that a second call costs nothing and a changed pin reinstalls.
stamp=.venv/.installed-${requirements%.txt}
wanted=$(cat requirements*.txt | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    "$python" -m pip --version >/dev/null 2>&1 ||
        { echo "error: .venv has no pip; remove that folder, and the same command makes it anew" >&2; exit 2; }
    echo "installing $requirements into .venv (a minute or two)"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
        { echo "error: pip could not install $requirements; its message is above" >&2; exit 2; }
    echo "$wanted" >"$stamp"
fi
