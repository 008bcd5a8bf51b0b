"""The flags that the report and a study have in common."""

from __future__ import annotations

from pathlib import Path

from pwm_core.commands import cli
from pwm_core.errors import UserError
from pwm_core.paths import find_logdir


class ResultsParser(cli.Parser):
    """Flags for what is read, where it is written, and the number of bootstrap samples."""

    def __init__(self, module: str, doc: str | None, output: str) -> None:
        """Make a parser with the common flags.

        Args:
            module: the module that the user runs.
            doc: its docstring; the first sentence describes the command.
            output: the folder it writes into by default, relative to that of the scores.
        """
        super().__init__(prog=f"python -m {module}", description=(doc or "").split("::")[0])
        logdir = find_logdir()
        written = f"folder to write into (<scores>/{output})"
        self._folders = (logdir.scores, logdir.runs)
        self.add_argument("-o", "--output", type=Path, default=None, help=written)
        self.add_argument(
            "--scores", type=Path, default=logdir.scores, help="folder of score files"
        )
        self.add_argument("--runs", type=Path, default=logdir.runs, help="folder of run folders")
        self.add_argument("--reps", type=int, default=2000, help="bootstrap samples (2000)")

    def checked(self) -> cli.argparse.Namespace:
        """Parse the command line.

        Raises:
            UserError: a flag is not valid, or names a folder that does not exist.
        """
        arguments = self.parse_args()
        for folder in (arguments.scores, arguments.runs):
            if folder not in self._folders and not folder.is_dir():
                raise UserError(f"there is no folder {folder}")
        if arguments.reps < 100:
            raise UserError(f"--reps {arguments.reps} is not valid: at least 100 are needed")
        return arguments
