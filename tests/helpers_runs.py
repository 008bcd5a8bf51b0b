"""Real training runs to interrupt: in this process around counting environments, and as processes
of their own in a copy of the source tree."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pwm_core.commands import cli
from pwm_core.commands.eval import run as run_evaluation
from pwm_core.commands.train import run as run_training
from pwm_core.domain import Domain
from pwm_core.paths import REPOSITORY, find_logdir
from tests.fork_server import ForkServer
from tests.helpers_envs import CONFIG, TINY, CountingEnv, counting_domain
from tests.helpers_processes import alive

# ------------------------------------------------------------------------------- in this process


class CrashError(BaseException):
    """Ends a run as nothing in it expects."""


Hook = Callable[[int, CountingEnv], None]
"""Called with the number of the step since the process began and the environments, before the step
is answered."""


def hooked(domain: Domain, hook: Hook | None) -> Domain:
    """``domain`` whose environments call ``hook`` at every step."""
    if hook is None:
        return domain

    def make_env(*arguments: Any) -> CountingEnv:
        env = domain.make_env(*arguments)
        answer, count = env.recv, iter(range(1, 1 << 60))

        def recv() -> Any:
            hook(next(count), env)
            return answer()

        env.recv = recv
        return env

    return replace(domain, make_env=make_env)


def flags(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("-set", override)]


def train(domain: Domain, argv: Sequence[str]) -> None:
    """``train.py`` in this process."""
    arguments = cli.train_parser(domain).parse_args(argv)
    run_training(domain, arguments, cli.read_config(arguments, domain))


def evaluate_run(domain: Domain, argv: Sequence[str]) -> Path:
    """``eval.py`` in this process; the CSV of the scores."""
    return run_evaluation(domain, cli.eval_parser(domain).parse_args(argv))


def train_on(domain: Domain, name: str, *argv: str) -> None:
    """``train.py`` in this process, on the counting environments of ``domain`` at small sizes."""
    command = ["-n", name, "-env_name", "count", "-config_path", CONFIG, "-device", "cpu"]
    train(domain, [*command, "-logger", "none", *flags(*TINY), *argv])


def train_counting(
    name: str,
    *argv: str,
    overrides: Sequence[str] = (),
    lengths: Sequence[int] = (7,),
    hook: Hook | None = None,
) -> None:
    """``train.py`` in this process, on one counting environment per entry of ``lengths``."""
    domain = hooked(counting_domain(lengths, life=2)[0], hook)
    given = flags(f"JointTrainAgent.NumEnvs={len(lengths)}", *overrides)
    train_on(domain, name, *given, *argv)


def evaluate_counting(name: str, *argv: str) -> Path:
    """``eval.py`` in this process, on counting environments; the CSV of the scores."""
    return evaluate_run(counting_domain((7,))[0], ["-n", name, "-device", "cpu", *argv])


def rows_of(path: Path) -> tuple[list[str], list[list[float]]]:
    """Header and rows of a score file."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    return header, [[float(cell) for cell in row] for row in rows]


def crash_at(number: int) -> Hook:
    """A hook that ends the run at that step."""

    def hook(step: int, env: CountingEnv) -> None:
        if step == number:
            raise CrashError

    return hook


def folder(name: str) -> Path:
    return find_logdir().runs / name


def records(path: Path) -> list[dict[str, float]]:
    """Of a run's folder."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def tensors(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a nest of dicts and lists."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in tensors(value, f"{prefix}{key}.").items()}
    return {prefix: tree}


def same(one: Any, two: Any) -> bool:
    """Bit for bit: NaN is NaN."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.numpy().tobytes() == two.numpy().tobytes()
    return type(one) is type(two) and one == two


def assert_same_run(one: Path, two: Path) -> None:
    """The same metrics byte for byte, the same last weights bit for bit."""
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()
    last = [sorted((path / "checkpoints").glob("*.pt"))[-1] for path in (one, two)]
    assert last[0].name == last[1].name
    weights, others = (tensors(torch.load(path, weights_only=True)) for path in last)
    assert weights.keys() == others.keys()
    assert len(weights) > 20
    assert [key for key in weights if not same(weights[key], others[key])] == []


# ----------------------------------------------------------------------------------- as processes


@dataclass
class Job:
    """A command that runs."""

    server: ForkServer
    pid: int
    output: str

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit status, or the negative number of the signal that ended it."""
        return self.server.wait(self.pid)

    @property
    def running(self) -> bool:
        return alive(self.pid)

    @property
    def stdout(self) -> str:
        return Path(self.output + ".out").read_text()

    @property
    def everything(self) -> str:
        """All of stderr so far, the progress bar included."""
        path = Path(self.output + ".err")
        return path.read_text() if path.exists() else ""

    @property
    def stderr(self) -> str:
        """Without the progress bar."""
        text = self.everything.replace("\r", "\n")
        return "".join(line + "\n" for line in text.splitlines() if not re.search("step/s|s/step|"
                       r"\?step", line) and line.strip())  # fmt: skip

    def ended(self, status: int = 0) -> Job:
        """Wait for it and check how it ended."""
        assert self.wait() == status, self.stdout[-2000:] + self.stderr[-3000:]
        assert "Traceback" not in self.stderr
        return self

    def refused(self, *says: str) -> Job:
        """One clear line on stderr and exit status 2."""
        self.ended(2)
        (line,) = self.stderr.splitlines()
        assert line.startswith("error: ")
        assert all(text in line for text in says), line
        return self

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in text.split()]


class RunTree:
    """A copy of the source tree, where runs touch nothing else."""

    def __init__(self, path: Path) -> None:
        self.root = path / "tree"
        for name in ("pwm_core", "pwm_atari", "pwm_dmc", "config_files"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, self.root / name, ignore=ignore)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "NETRC"))}
        environ = kept | {"HOME": str(path), "OMP_NUM_THREADS": "1"}
        imports = ["pwm_atari.train", "pwm_dmc.train"]
        self._server = ForkServer(self.root, environ, imports)
        self._jobs = 0

    def start(
        self, domain: str, *argv: str, limits: dict[int, int] | None = None, **environ: str
    ) -> Job:
        """``train.py`` of a domain; ``limits`` are resource limits by their number."""
        argv = (*argv, "-device", "cpu")
        return self._start(f"pwm_{domain}/train.py", argv, environ=environ, limits=limits)

    def quickstart(self, *argv: str) -> Job:
        """What ``./train.sh`` and ``./eval.sh`` call; the first word says which."""
        return self._start("pwm_core/commands/quickstart.py", argv)

    def _start(self, script: str, argv: Sequence[str], **options: Any) -> Job:
        self._jobs += 1
        output = f"{self.root.parent}/output{self._jobs}"
        return Job(self._server, self._server.start(script, argv, output, **options), output)

    def folder(self, name: str) -> Path:
        return self.root / "ckpt" / name

    def close(self) -> None:
        self._server.close()


MODELS = (
    "Models={Hidden: 32, Stoch: 4, Discrete: 4, NumBin: 21}",
    "Models.WorldModel={Stem: 4, MLPUnits: 32, ScanChunk: 8}",
    "Models.Agent.LR=0.03",  # a policy that stays uniform would not show what it acts on
    "JointTrainAgent={BatchSize: 4, BatchLength: 8, ImagineBatchSize: 4, ImagineContext: 2}",
    "JointTrainAgent={ImagineHorizon: 4, VideoLogStep: 100000, LogEverySteps: 20}",
    "JointTrainAgent={TrainModelEverySteps: 1, TrainAgentEverySteps: 1}",
)
"""Overrides with which a training step takes some ten milliseconds."""


def dmc(name: str, *overrides: str) -> list[str]:
    """Flags of a short run of four cartpoles."""
    loop = "JointTrainAgent={SampleMaxSteps: 900, BufferMaxLength: 480, BufferWarmUp: 400}"
    more = "JointTrainAgent={NumEnvs: 4, SaveEverySteps: 60, TrainAgentEverySteps: 2}"
    given = flags(*MODELS, loop, more, *overrides)
    config = ["-config_path", "config_files/dmc_tiny.yaml", "-obs_type", "proprio"]
    return ["-n", name, "-env_name", "cartpole_balance", *config, "-logger", "none", *given]


def atari(name: str, *overrides: str) -> list[str]:
    """Flags of a short run of Pong."""
    loop = "JointTrainAgent={SampleMaxSteps: 320, BufferMaxLength: 160, BufferWarmUp: 100}"
    given = flags(*MODELS, loop, "JointTrainAgent.SaveEverySteps=25", *overrides)
    config = ["-config_path", "config_files/atari_tiny.yaml"]
    return ["-n", name, "-env_name", "ALE/Pong-v5", *config, "-logger", "none", *given]


PONG = "JointTrainAgent={SampleMaxSteps: 170, SaveEverySteps: 500, LogEverySteps: 5}"


def last_step(run: Path) -> int:
    """The last step that a run's metrics tell of; -1 where there is none."""
    with contextlib.suppress(OSError, IndexError, ValueError, KeyError):
        text = (run / "metrics.jsonl").read_bytes()
        return json.loads(text[: text.rindex(b"\n")].splitlines()[-1])["step"]
    return -1


def wait_for(what: Callable[[], Any], seconds: float = 90) -> Any:
    """What ``what`` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.005)
    raise AssertionError(f"not within {seconds} s")


def wait_for_step(job: Job, run: Path, step: int) -> None:
    """Until the metrics tell of ``step``, or the process has ended."""
    wait_for(lambda: last_step(run) >= step or not job.running)


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of its own at ``path`` with room for ``size``.

    Raises:
        OSError: this user may not mount one.
    """
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise OSError(str(error)) from None
    if done.returncode:
        raise OSError(done.stderr.strip())
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path, leave: int = 0) -> Path:
    """Fill the file system at ``path`` up to ``leave`` bytes; returns the file that does."""
    ballast = path / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    if leave:
        os.truncate(ballast, max(0, ballast.stat().st_size - leave))
    return ballast


LIMIT_SIZE, LIMIT_MEMORY = resource.RLIMIT_FSIZE, resource.RLIMIT_AS
