"""Flags and exit statuses of ``train.py``, ``eval.py`` and ``record.py`` of every domain.

Nothing here imports torch, so a wrong flag or config is reported in a fraction of a second.
"""

from __future__ import annotations

import argparse
import errno
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pwm_core.errors import UserError, closest
from pwm_core.signals import STOPPED, StoppedError

if TYPE_CHECKING:
    from pwm_core.config import Config
    from pwm_core.domain import Domain
    from pwm_core.envs import VectorEnv
    from pwm_core.training.agent import Agent

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The system's error numbers that mean that nothing more can be written."""
LOGGERS = ("wandb", "tensorboard")


class Parser(argparse.ArgumentParser):
    """Raises :class:`UserError` for a bad flag, and accepts flags only by their full name."""

    def error(self, message: str) -> NoReturn:
        """Raise the error that argparse reports for a bad flag."""
        raise UserError(f"{message}; see {self.prog} -h")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, but treat ``-nofoo`` as an unknown flag instead of ``-n`` with
        ``ofoo``."""
        known = self._option_string_actions
        for argument in sys.argv[1:] if args is None else args:
            if argument == "--":
                break
            flag = argument.partition("=")[0]
            if re.match("-{1,2}[A-Za-z]", flag) and flag not in known:
                self.error(f"unknown flag {flag}{closest(flag, list(known))}")
        return super().parse_known_args(args, namespace)


# -------------------------------------------------------------------------------- kinds of values


def seed_number(text: str) -> int:
    """The value of a flag: a seed that NumPy and torch take."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2**32 - 1")
    return int(text)


def _whole(text: str, least: int = 0) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} on")
    return int(text)


def count(text: str) -> int:
    """The value of a flag: a whole number from 1 on."""
    return _whole(text, least=1)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("a path is needed")
    return Path(text)


def _file(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the path of a YAML file is needed")
    return text


def logger_names(text: str) -> list[str]:
    """``wandb,tensorboard`` or ``none`` -> names."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["none"] or not names:
        return []
    for name in names:
        if name not in LOGGERS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is not one of {', '.join(LOGGERS)}; or write none"
            )
    return names


# ------------------------------------------------------------------------------------------ flags


def _add_shared_flags(parser: Parser, domain: Domain, *, named: bool = True) -> None:
    """Add the flags that all three commands take, including the domain's own.

    Args:
        named: whether the run's name is required.
    """
    parser.add_argument("-n", "-run_name", dest="name", required=named, help="name of the run")
    parser.add_argument(
        "-config_path",
        type=_file,
        default=None,
        metavar="FILE[,FILE...]",
        help=f"YAML files laid over the domain's full config, {domain.defaults}, in this order",
    )
    parser.add_argument(
        "-logdir",
        type=_path,
        default=None,
        metavar="DIR",
        help="folder that holds ckpt/ and eval_result/ (default: $PAMORL_LOGDIR, else the project)",
    )
    parser.add_argument("-device", default="auto", help="cpu, cuda, cuda:N or auto (the default)")
    parser.add_argument(
        "-seed", type=seed_number, default=None, help="overrides BasicSettings.Seed"
    )
    parser.add_argument(
        "-set",
        action="append",
        default=[],
        metavar="Section.Key=value",
        help="override one key of the config; may be repeated",
    )
    domain.add_arguments(parser)


def train_parser(domain: Domain, *, quick: bool = False, prog: str | None = None) -> Parser:
    """The flags of training.

    Args:
        quick: for ``./train.sh``, which needs neither a name nor a task.
        prog: what the help text calls the command.
    """
    parser = Parser(prog=prog, description=f"Train PaMoRL on {domain.name}.")
    _add_shared_flags(parser, domain, named=not quick)
    parser.add_argument(
        "-env_name", required=not quick, help=f"task, such as {domain.example_task}"
    )
    parser.add_argument(
        "-logger",
        type=logger_names,
        default="wandb",
        help="wandb, tensorboard, both with a comma, or none",
    )
    parser.add_argument(
        "-resume",
        action="store_true",
        help="continue the run of that name where it stopped; start it if there is none",
    )
    parser.add_argument(
        "-trajectory_path",
        type=_path,
        default=None,
        metavar="FILE",
        help="recorded trajectory (.npz), read if JointTrainAgent.UseDemonstration is true",
    )
    parser.add_argument(
        "-keep",
        type=count,
        default=None,
        metavar="K",
        help="keep the weights of the newest K checkpoints (default: all)",
    )
    parser.add_argument(
        "-deterministic", action="store_true", help="the same numbers every time on one machine"
    )
    return parser


def eval_parser(domain: Domain, *, prog: str | None = None) -> Parser:
    """The flags of evaluation; ``prog`` as in :func:`train_parser`."""
    description = f"Evaluate a PaMoRL run on {domain.name}."
    parser = Parser(prog=prog, description=description)
    _add_shared_flags(parser, domain)
    parser.add_argument("-env_name", default=None, help="checked against the run's own task")
    parser.add_argument("-checkpoint", default="last", help="last (default), all or a step")
    parser.add_argument("-episodes", type=count, default=None, help="overrides EvalEpisodes")
    parser.add_argument("-greedy", action="store_true", help="the policy's mode, not samples")
    parser.add_argument(
        "-video",
        type=_whole,
        default=0,
        metavar="N",
        help="film the first N episodes of each checkpoint, into the run's folder videos/",
    )
    return parser


def record_parser(domain: Domain, *, prog: str | None = None) -> Parser:
    """The flags of recording; ``prog`` as in :func:`train_parser`."""
    description = f"Record steps of a run, or of random play, on {domain.name}."
    parser = Parser(prog=prog, description=description)
    _add_shared_flags(parser, domain, named=False)
    parser.add_argument("-env_name", default=None, help="for random play, which has no run")
    parser.add_argument("-o", dest="output", type=_path, required=True, help="file to write, .npz")
    parser.add_argument(
        "-steps",
        type=count,
        default=10_000,
        metavar="N",
        help="steps to record (default: 10000)",
    )
    parser.add_argument("-checkpoint", default="last", help="last (default) or a step")
    parser.add_argument("-greedy", action="store_true", help="the policy's mode, not samples")
    return parser


def examine_parser() -> Parser:
    """The flags of examining a run, whose domain is not known yet."""
    parser = Parser(description="Examine a run: its world model, its critic and its policy.")
    parser.add_argument("name", metavar="NAME", help="name of the run, or of a published agent")
    parser.add_argument("-checkpoint", default="last", help="last (default) or a step")
    counts = {
        "-steps": (2000, "steps to play"),
        "-given": (16, "real steps before each prediction"),
        "-samples": (8, "predictions that are averaged"),
    }
    for flag, (default, told) in counts.items():
        parser.add_argument(
            flag, type=count, default=default, metavar="N", help=f"{told} (default: {default})"
        )
    parser.add_argument("-device", default="auto", help="cpu, cuda, cuda:N or auto (the default)")
    parser.add_argument(
        "-set", action="append", default=[], metavar="Section.Key=value", help="as for eval.py"
    )
    parser.add_argument("-logdir", type=_path, default=None, metavar="DIR", help="as for train.py")
    parser.add_argument(
        "-o", dest="output", type=_path, default=None, metavar="FILE", help="write all as JSON"
    )
    return parser


def overrides(arguments: argparse.Namespace, domain: Domain) -> list[str]:
    """All ``Section.Key=value`` that the flags stand for. Later ones override earlier ones."""
    seed = [] if arguments.seed is None else [f"BasicSettings.Seed={arguments.seed}"]
    return [*domain.overrides(arguments), *seed, *arguments.set]


def read_config(arguments: argparse.Namespace, domain: Domain) -> Config:
    """The config that the flags of training ask for.

    Raises:
        UserError: a file is missing, a key is unknown, a type is wrong or a value is impossible.
    """
    from pwm_core.config_file import load_config

    return load_config(
        arguments.config_path or domain.defaults,
        defaults=domain.defaults,
        overrides=overrides(arguments, domain),
    )


# --------------------------------------------------------------------------------------- commands


def make_agent(domain: Domain, config: Config, env: VectorEnv, device: str) -> Agent:
    """Make the world model, the actor-critic and the optimisers on ``device``."""
    from pwm_core.runtime import find_device
    from pwm_core.training import methods

    return methods.make_agent(
        config,
        domain.make_world_model(config, env),
        domain.make_actor_critic(config, env),
        find_device(device),
    )


def run_command(command: Callable[[], None]) -> NoReturn:
    """Run a command and exit. The status is 0 after success and 2 after bad input, which prints one
    line on stderr. It is 75 when a signal ended a training that can be resumed, and 130 when
    something else was interrupted."""
    try:
        command()
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(STOPPED)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno not in FULL_DISK:
            raise
        print(f"error: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _train(domain: Domain) -> None:
    arguments = train_parser(domain).parse_args()
    config = read_config(arguments, domain)
    import_module("pwm_core.commands.train").run(domain, arguments, config)


def _evaluate(domain: Domain) -> None:
    arguments = eval_parser(domain).parse_args()
    import_module("pwm_core.commands.eval").run(domain, arguments)


def _record(domain: Domain) -> None:
    arguments = record_parser(domain).parse_args()
    if arguments.checkpoint == "all":
        raise UserError("-checkpoint all is not valid: one checkpoint is recorded")
    import_module("pwm_core.commands.record").run(domain, arguments)


def train_command(domain: Domain) -> NoReturn:
    """Run ``train.py`` of a domain and exit as :func:`run_command` does. Flags and config are read
    before torch is imported, because the import takes more than a second."""
    run_command(lambda: _train(domain))


def eval_command(domain: Domain) -> NoReturn:
    """Run ``eval.py`` of a domain and exit as :func:`run_command` does."""
    run_command(lambda: _evaluate(domain))


def record_command(domain: Domain) -> NoReturn:
    """Run ``record.py`` of a domain and exit as :func:`run_command` does."""
    run_command(lambda: _record(domain))
