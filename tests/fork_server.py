"""Commands in forks of a process that has imported torch and the commands themselves, which spares
each seconds of imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

PATIENCE = 600
"""Seconds after which a command is killed, as a guard against one that never ends."""

SERVER = f"""
import json, os, resource, runpy, signal, sys, traceback
sys.path.insert(0, os.getcwd())
import torch._dynamo
for name in ("pwm_core.commands.train", "pwm_core.commands.eval", *sys.argv[1:]):
    __import__(name)
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    code = 0
    signal.alarm({PATIENCE})
    try:
        for number, name in (1, ".out"), (2, ".err"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(job["output"] + name, flags), number)
        os.chdir(job["cwd"])
        os.environ.update(job["environ"])
        for limit, value in job["limits"].items():
            resource.setrlimit(int(limit), (value, value))
        sys.argv = [job["script"], *job["argv"]]
        runpy.run_path(job["script"], run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    if job["modules"]:
        with open(job["output"] + ".modules", "w") as file:
            file.write(" ".join(sys.modules))
    sys.stdout.flush(), sys.stderr.flush(), os._exit(code)
"""


class ForkServer:
    """Runs scripts of the source tree in ``root``, each in a process of its own."""

    def __init__(self, root: Path, environ: Mapping[str, str], imports: Iterable[str]) -> None:
        """Start the process that forks.

        Args:
            environ: the environment variables of all scripts.
            imports: modules that it imports besides torch and the commands.
        """
        self.root = root
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-O", "-c", SERVER, *imports],
            cwd=root, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(
        self, script: str, argv: Iterable[str], output: str, *, cwd: Path | None = None,
        environ: Mapping[str, str] | None = None, limits: Mapping[int, int] | None = None,
        modules: bool = False,
    ) -> int:  # fmt: skip
        """Start ``script``, a path below the root, and return the id of its process.

        Args:
            output: path of its output; ``.out`` and ``.err`` are added.
            cwd: its working folder; the root by default.
            environ: environment variables besides those of all scripts.
            limits: resource limits by their number.
            modules: write the names of all modules it has imported beside its output, as
                ``.modules``, when it ends.
        """
        job = {
            "script": str(self.root / script), "argv": list(argv), "output": output,
            "cwd": str(cwd or self.root), "environ": dict(environ or {}),
            "limits": dict(limits or {}), "modules": modules,
        }  # fmt: skip
        return self._ask(job)

    def wait(self, pid: int) -> int:
        """The exit status of a script, or the negative number of the signal that ended it."""
        return self._ask({"wait": pid})

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _ask(self, question: dict[str, object]) -> int:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())
