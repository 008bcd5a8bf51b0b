"""Train, evaluate and collect many runs of one domain, several side by side.

Called by ``scripts/atari100k.sh`` and ``scripts/dmc.sh``. A run that is finished is left alone, one
that was interrupted goes on: the same command may be stopped (SIGTERM, Ctrl-C, a crash) and given
again until it says that all is done. Exit status: 0 all done, 2 a run failed, 75 stopped.
"""

from __future__ import annotations

import argparse
import csv
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pwm_core.cli import Parser, run_command
from pwm_core.config import REPOSITORY
from pwm_core.config_file import find_config, load_config
from pwm_core.errors import UserError
from pwm_core.paths import find_logdir
from pwm_core.runs.run_folder import RunFolder
from pwm_core.signals import StoppedError
from pwm_dmc.action_repeat import resolve
from scripts.collect import collect

FULL = {"atari": "config_files/atari.yaml", "dmc": "config_files/dmc.yaml"}

LONG_TASKS = {
    *("cartpole_swingup_sparse", "cheetah_run", "finger_turn_easy", "finger_turn_hard"),
    *("hopper_hop", "hopper_stand", "quadruped_run", "quadruped_walk"),
}
"""Tasks of the published table with twice the budget of the others."""


def budget(task: str, obs_type: str) -> int:
    """Simulator steps of the published table: 100k from proprioception, 200k from pixels, each
    twice for :data:`LONG_TASKS`."""
    return {"proprio": 100_000, "visual": 200_000}[obs_type] * (1 + (task in LONG_TASKS))


@dataclass(frozen=True)
class Job:
    """One run: what ``train.py`` and ``eval.py`` are called with."""

    domain: str
    name: str
    task: str
    seed: int
    config: Path
    device: str
    flags: tuple[str, ...]
    steps: int

    def command(self, script: str, *more: str) -> list[str]:
        """``train`` or ``eval`` with this job's flags."""
        path = REPOSITORY / f"pwm_{self.domain}" / f"{script}.py"
        named = ["-n", self.name, "-env_name", self.task, "-seed", str(self.seed)]
        named += ["-config_path", str(self.config), "-device", self.device]
        return [sys.executable, "-u", "-O", str(path), *named, *self.flags, *more]

    def evaluated(self) -> bool:
        """Whether the scores of a whole run are there already."""
        try:
            path = find_logdir().scores / f"{self.name}.csv"
            with open(path, newline="", encoding="utf-8") as file:
                return any(row and row[0].isdigit() and int(row[0]) >= self.steps
                           for row in csv.reader(file))  # fmt: skip
        except OSError:
            return False


class Campaign:
    """Runs jobs, a number of them side by side, until they are done or a signal says stop."""

    def __init__(self, jobs: list[Job], side_by_side: int, logger: str) -> None:
        self.jobs, self.side_by_side, self.logger = jobs, side_by_side, logger
        self.failed: list[str] = []
        self._stop: str | None = None
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self) -> None:
        """All jobs.

        Raises:
            StoppedError: a signal ended it.
            UserError: some jobs failed.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self._ask_to_stop(number))
        with ThreadPoolExecutor(self.side_by_side) as pool:
            futures = [pool.submit(self._run, job) for job in self.jobs]
            while not all(future.done() for future in futures):
                time.sleep(0.2)  # signals are handled in this thread
        for future in futures:
            future.result()
        if self._stop:
            raise StoppedError(f"{self._stop}: stopped; the same command goes on")
        if self.failed:
            raise UserError(f"failed: {', '.join(self.failed)}; see {find_logdir().runs / 'logs'}")

    def _ask_to_stop(self, number: int) -> None:
        self._stop = signal.Signals(number).name
        for process in list(self._running):
            process.terminate()

    def _run(self, job: Job) -> None:
        """Train, evaluate, collect one run, as far as it is not done yet."""
        if job.evaluated():
            print(f"{job.name}: done already", flush=True)
            return
        began = time.monotonic()
        trained = self._call(job, "train", "-resume", "-logger", self.logger)
        if trained is not None and (find_logdir().runs / job.name).is_dir():
            with open(find_logdir().runs / job.name / "seconds", "a", encoding="utf-8") as file:
                file.write(f"{time.monotonic() - began:.0f}\n")
        if trained == 0 and self._call(job, "eval") == 0:
            collect(job.name)
            scores = find_logdir().scores / f"{job.name}.csv"
            last = scores.read_text(encoding="utf-8").splitlines()[-1]
            print(f"{job.name}: mean return {last.split(',')[2]}", flush=True)

    def _call(self, job: Job, script: str, *flags: str) -> int | None:
        """Exit status of one command; None when it was not begun since a signal says stop."""
        log = find_logdir().runs / "logs" / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            with self._lock:
                if self._stop:
                    return None
                print(f"{job.name}: {script} (log: {log})", flush=True)
                process = subprocess.Popen(
                    job.command(script, *flags),
                    stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
                self._running.add(process)
            status = process.wait()
        self._running.discard(process)
        if status and not self._stop:
            self.failed.append(f"{job.name} ({script}, status {status})")
        return status


def task_overrides(arguments: argparse.Namespace, task: str) -> list[str]:
    """``Section.Key=value`` overrides of one task: its budget, then the user's own."""
    overrides = []
    if arguments.domain == "dmc" and arguments.config_path is None:
        config = load_config(find_config(FULL["dmc"]), overrides=arguments.set)
        skip = resolve(config, task).BasicSettings.FrameSkip
        steps = budget(task, arguments.obs_type) // skip
        overrides = [
            f"JointTrainAgent.{key}={steps}" for key in ("SampleMaxSteps", "BufferMaxLength")
        ]
    return [*overrides, *arguments.set]


def _jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    """Seed by seed, the tasks in the order given: a first seed of each comes before a second.

    Raises:
        UserError: the config does not exist or is not valid, or a name cannot be a run's.
    """
    domain = arguments.domain
    config = find_config(arguments.config_path or FULL[domain]).resolve()
    for seed in (int(text) for text in arguments.seeds.split(",")):
        for task in arguments.tasks:
            overrides = task_overrides(arguments, task)
            settings = load_config(config, defaults=FULL[domain], overrides=overrides)
            flags = [part for override in overrides for part in ("-set", override)]
            if arguments.obs_type:
                flags = ["-obs_type", arguments.obs_type, *flags]
            short = task.removeprefix("ALE/").removesuffix("-v5")
            parts = [short, arguments.obs_type, arguments.suffix, f"seed{seed}"]
            yield Job(
                domain=domain,
                name=RunFolder("-".join(part for part in parts if part)).name,
                task=f"ALE/{short}-v5" if domain == "atari" else task,
                seed=seed,
                config=config,
                device=arguments.device,
                flags=tuple(flags),
                steps=settings.JointTrainAgent.SampleMaxSteps,
            )


def main() -> None:
    """Parse the flags and run the campaign."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("domain", choices=list(FULL))
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="Pong, or walker_walk")
    parser.add_argument("-obs_type", choices=["proprio", "visual"], help="DeepMind Control only")
    parser.add_argument("-seeds", default="1", help="comma-separated, as 1,2,3")
    parser.add_argument("-jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("-config_path", default=None, help="in place of the domain's full config")
    parser.add_argument("-device", default="auto")
    parser.add_argument("-suffix", default="", help="part of the runs' names")
    parser.add_argument("-logger", default="none")
    parser.add_argument("-set", action="append", default=[], metavar="Section.Key=value")
    arguments = parser.parse_args()
    if arguments.jobs < 1 or not all(text.isdigit() for text in arguments.seeds.split(",")):
        raise UserError("-jobs must be at least 1 and -seeds numbers with commas, as 1,2,3")
    Campaign(list(_jobs(arguments)), arguments.jobs, arguments.logger).run()


if __name__ == "__main__":
    run_command(main)
