"""The commands behind ``./train.sh`` and ``./eval.sh``, with the flags of ``train.py`` and
``eval.py``::

    python -m pwm_core.commands.quickstart train [DOMAIN] [flags of train.py]
    python -m pwm_core.commands.quickstart eval [DOMAIN] [flags of eval.py]

Training needs no flag at all. The domain, task, config, seed and name that are not given are chosen
and printed. After training, the agent is evaluated with a video and compared with random play, and
the curves are drawn.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pwm_core.commands.cli import eval_parser, read_config, run_command, train_parser
from pwm_core.domain import Domain, check_task, domain_names, find_domain
from pwm_core.errors import UserError
from pwm_core.paths import CONFIG_ROOT, REPOSITORY, LogDir, find_logdir

if TYPE_CHECKING:
    from pwm_core.config import Config
    from pwm_core.runs.run_folder import RunFolder

DOMAIN = "dmc"
"""The domain if none is named."""
SEED = 1
"""The seed if neither a flag nor the user's config file gives one."""


def _split(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The domain, if the first word names one, and the flags."""
    if argv and not argv[0].startswith("-"):
        return argv[0], list(argv[1:])
    return None, list(argv)


def _usage(script: str) -> str:
    """The name of the command in the help text."""
    return f"{script} [{'|'.join(domain_names())}]"


# --------------------------------------------------------------------------------------- training


def train(argv: Sequence[str]) -> None:
    """Train, evaluate and draw, as the arguments of ``./train.sh`` say.

    Raises:
        UserError: an argument, the config or the machine does not allow it.
    """
    word, flags = _split(argv)
    domain = find_domain(word or DOMAIN)
    arguments = train_parser(domain, quick=True, prog=_usage("./train.sh")).parse_args(flags)
    config = _fill_in(domain, arguments)

    from pwm_core.commands.train import run

    run(domain, arguments, config)
    _evaluate_and_draw(domain, arguments, config)


def _fill_in(domain: Domain, arguments: argparse.Namespace) -> Config:
    """Choose the missing flags and store them in ``arguments``. Returns the resolved config."""
    arguments.env_name = arguments.env_name or domain.quick_task or domain.example_task
    size = ""
    if arguments.config_path is None:
        arguments.config_path, size = _choose_config(domain, arguments.device)
        arguments.seed = SEED if arguments.seed is None else arguments.seed
    config = read_config(arguments, domain)
    check_task(domain, config, arguments.env_name, arguments.config_path)
    config = domain.resolve(config, arguments.env_name)
    if arguments.name is None:
        short = re.sub(r"^.*/|-v\d+$", "", arguments.env_name)
        stem = f"{short}{size}-seed{config.BasicSettings.Seed}"
        found = _find_run(domain, arguments, config, stem) if arguments.resume else None
        if arguments.resume and found is None:
            print("-resume: no run of this task and seed was started; a new one begins")
        arguments.name = found or f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    return config


def _choose_config(domain: Domain, device: str) -> tuple[str, str]:
    """The full config for a GPU or the tiny one for a CPU, and the suffix that this adds to a run's
    name."""
    from pwm_core.runtime import find_device

    tiny = domain.defaults.replace(".yaml", "_tiny.yaml")
    chosen = find_device(device)
    if chosen.type == "cpu" and (CONFIG_ROOT / tiny).is_file():
        print(f"no CUDA device is used: the config is {tiny}")
        return tiny, "-tiny"
    print(f"training on {chosen}: the config is {domain.defaults}")
    return domain.defaults, ""


def _find_run(
    domain: Domain, arguments: argparse.Namespace, config: Config, stem: str
) -> str | None:
    """The name of the newest run that the same flags started. An unfinished run is preferred.

    Returns:
        None if there is no run of that task and seed.

    Raises:
        UserError: runs of that task and seed are unfinished, but all have other settings.
    """
    from pwm_core.commands.train import identity

    logdir = find_logdir(arguments.logdir)
    about = identity(domain, config, arguments)
    same, other = [], []
    for folder in _started(logdir, stem):
        differences = folder.differences(config, about, domain.defaults)
        if not differences:
            same.append(folder)
        elif not folder.finished(folder.config(domain.defaults).JointTrainAgent.SampleMaxSteps):
            other.append(f"{folder.name} ({'; '.join(differences)})")
    unfinished = [f for f in same if not f.finished(config.JointTrainAgent.SampleMaxSteps)]
    if unfinished or same:
        return (unfinished or same)[0].name
    if other:
        raise UserError(
            "-resume: no run has these settings; unfinished runs of this task and seed with "
            f"others: {', '.join(other)}. Repeat the flags of one of them, with -n and its name, "
            "or leave -resume out to start a new run"
        )
    return None


def _started(logdir: LogDir, stem: str) -> list[RunFolder]:
    """The runs that :func:`train` named ``<stem>-<date>-<time>``, newest first."""
    from pwm_core.runs.run_folder import RunFolder

    found = [path.parent.name for path in logdir.runs.glob("*/config.yaml")]
    names = [name for name in found if re.fullmatch(re.escape(stem) + r"-\d{8}-\d{6}", name)]
    return [RunFolder(name, logdir) for name in sorted(names, reverse=True)]


def _evaluate_and_draw(domain: Domain, arguments: argparse.Namespace, config: Config) -> None:
    """Evaluate and film the run, compare it with random play, draw its curves, and print where
    everything is."""
    from pwm_core.commands import plot
    from pwm_core.commands.eval import run
    from pwm_core.runs.run_folder import RunFolder
    from pwm_core.runs.score_file import last_mean

    folder = RunFolder(arguments.name, find_logdir(arguments.logdir))
    flags = ["-n", arguments.name, "-device", arguments.device, "-video", "1"]
    flags += ["-logdir", str(arguments.logdir)] if arguments.logdir else []
    scores = run(domain, eval_parser(domain).parse_args(flags))
    chance = _random_play(domain, config, arguments.env_name)
    print(
        f"{arguments.env_name}: the trained agent returns {last_mean(scores):.1f}, "
        f"random play {chance:.1f}"
    )
    curve = folder.path / "curve.png"
    plot.plot([folder.path], curve)
    print(f"curve: {curve}")
    print(f"metrics: {folder.metrics}")
    print(f"checkpoints: {folder.path / 'checkpoints'}")
    print(f"videos: {folder.videos}")
    where = f" -logdir {shlex.quote(str(arguments.logdir))}" if arguments.logdir else ""
    print(f"another evaluation: ./eval.sh -run_name {folder.name} -video 1{where}")


def _random_play(domain: Domain, config: Config, task: str) -> float:
    """The mean return of random play over as many episodes as an evaluation plays."""
    from pwm_core.training.evaluation import RandomAgent, evaluate

    settings, seed = config.JointTrainAgent, config.BasicSettings.Seed
    env = domain.make_env(config, task, min(settings.EvalEnvs, settings.EvalEpisodes), seed)
    try:
        returns = evaluate(RandomAgent(env, seed), env, settings.EvalEpisodes)
    finally:
        env.close()
    return sum(returns) / len(returns)


# ------------------------------------------------------------------------------------- evaluation


def evaluate(argv: Sequence[str]) -> None:
    """Evaluate a run, as the arguments of ``./eval.sh`` say.

    Raises:
        UserError: an argument, the run or the machine does not allow it.
    """
    word, flags = _split(argv)
    domain = find_domain(word or _domain_of_run(flags) or DOMAIN)
    arguments = eval_parser(domain, prog=_usage("./eval.sh")).parse_args(flags)

    from pwm_core.commands.eval import run

    run(domain, arguments)


def _domain_of_run(flags: Sequence[str]) -> str | None:
    """The domain in ``run.json`` of the named run, or of a published agent of that name. None if it
    cannot be read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-n", "-run_name", dest="name")
    parser.add_argument("-logdir")
    try:
        known = parser.parse_known_args(flags)[0]
        places = find_logdir(known.logdir).runs, REPOSITORY / "pretrained" / "ckpt"
        abouts = [runs / (known.name or "") / "run.json" for runs in places]
        about = next((path for path in abouts if path.is_file()), abouts[0])
        domain = json.loads(about.read_text(encoding="utf-8"))["domain"]
        return domain if isinstance(domain, str) else None
    except (argparse.ArgumentError, OSError, ValueError, KeyError, TypeError):
        return None  # The error is reported when the flags are parsed and the run is opened.


COMMANDS = {"train": train, "eval": evaluate}


def main() -> None:
    """Run the command that the first argument names."""
    command, *words = sys.argv[1:] or [""]
    if command not in COMMANDS:
        raise UserError(f"{command!r} is not a command; there are {', '.join(COMMANDS)}")
    COMMANDS[command](words)


if __name__ == "__main__":
    run_command(main)
