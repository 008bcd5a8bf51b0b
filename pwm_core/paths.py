"""The locations of the project's own files (config files) and of the files that its commands write.

In a checkout the config files are in ``config_files/`` at the repository's root. An installed
package has the same files inside ``pwm_core``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pwm_core.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
"""The repository's root, or the folder of the installed packages."""
IN_CHECKOUT = (REPOSITORY / "config_files").is_dir()
"""Whether this code runs from a checkout instead of an installed package."""
CONFIG_ROOT = REPOSITORY if IN_CHECKOUT else Path(__file__).resolve().parent
"""The folder that holds ``config_files/``."""
LOGDIR_VARIABLE = "PAMORL_LOGDIR"
"""The environment variable that stands for the flag ``-logdir``."""


@dataclass(frozen=True)
class LogDir:
    """The folder under which runs and scores are written."""

    root: Path

    @property
    def runs(self) -> Path:
        """The folder of all run folders."""
        return self.root / "ckpt"

    @property
    def scores(self) -> Path:
        """The folder of all score files."""
        return self.root / "eval_result"


def find_logdir(given: str | Path | None = None) -> LogDir:
    """The folder to write to. It is ``given`` (the flag ``-logdir``), else the environment variable
    ``PAMORL_LOGDIR``, else the repository's root, else (if installed) the working directory.

    Raises:
        UserError: it is in the home directory of a user who does not exist.
    """
    chosen = given or os.environ.get(LOGDIR_VARIABLE)
    if chosen:
        try:
            return LogDir(Path(chosen).expanduser().absolute())
        except RuntimeError:
            raise UserError(f"-logdir {chosen}: there is no such home directory") from None
    return LogDir(REPOSITORY if IN_CHECKOUT else Path.cwd())
