"""What the commands ``train.py`` and ``eval.py`` of every domain have in common."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pwm_core.config import Config
from pwm_core.domain import Domain
from pwm_core.envs import VectorEnv
from pwm_core.errors import UserError
from pwm_core.runtime import find_device
from pwm_core.signals import STOPPED, StoppedError
from pwm_core.training.agent import Agent

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where nothing more can be written."""


class Parser(argparse.ArgumentParser):
    """One line for a bad flag, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for bad flags."""
        raise UserError(f"{message}; see {self.prog} -h")


def make_parser(description: str, domain: Domain) -> Parser:
    """The flags that both commands take, the domain's own included."""
    parser = Parser(description=description, allow_abbrev=False)
    parser.add_argument("-n", "-run_name", dest="name", required=True, help="name of the run")
    parser.add_argument(
        "-config_path", default=None, help=f"YAML file; the defaults are {domain.defaults}"
    )
    parser.add_argument(
        "-logdir",
        type=_folder,
        default=None,
        metavar="DIR",
        help="folder that holds ckpt/ and eval_result/ (default: $PAMORL_LOGDIR, else the project)",
    )
    parser.add_argument("-device", default="auto", help="cpu, cuda, cuda:N or auto (the default)")
    parser.add_argument("-seed", type=_seed, default=None, help="overrides BasicSettings.Seed")
    parser.add_argument(
        "-set",
        action="append",
        default=[],
        metavar="Section.Key=value",
        help="override one key of the config; may be repeated",
    )
    domain.add_arguments(parser)
    return parser


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("a folder is needed")
    return Path(text)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2**32 - 1")
    return int(text)


def overrides(arguments: argparse.Namespace, domain: Domain) -> list[str]:
    """All ``Section.Key=value`` that the flags stand for; later ones win."""
    seed = [] if arguments.seed is None else [f"BasicSettings.Seed={arguments.seed}"]
    return [*domain.overrides(arguments), *seed, *arguments.set]


def make_agent(domain: Domain, config: Config, env: VectorEnv, device: str) -> Agent:
    """World model, actor-critic and optimisers on ``device``."""
    return Agent(
        config,
        domain.make_world_model(config, env),
        domain.make_actor_critic(config, env),
        find_device(device),
    )


def run_command(command: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0; 2 after bad input (one line on stderr); 75 when a signal ended a
    training that can be resumed; 130 when something else was interrupted."""
    try:
        command()
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(STOPPED)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        print(f"error: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def run(command: Callable[[Domain], None], domain: Domain) -> NoReturn:
    """Run a domain's command and exit as :func:`run_command` does."""
    run_command(lambda: command(domain))
