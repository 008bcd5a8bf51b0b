"""The report on all runs::

    python -m results [--open]

It reads ``eval_result/*.csv`` with their JSON files, the run folders under ``ckpt/`` and
``eval_result/published/``. It writes tables, figures and a self-contained page under
``eval_result/report/``.
"""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

from pwm_core.commands import cli
from pwm_core.errors import UserError
from pwm_core.paths import find_logdir

NEEDED = "requirements-results.txt"


def _arguments() -> cli.argparse.Namespace:
    scores, runs = find_logdir().scores, find_logdir().runs
    parser = cli.Parser(prog="python -m results", description=__doc__.split("::")[0])
    parser.add_argument("-o", "--output", type=Path, default=None, help="folder to write into")
    parser.add_argument("--scores", type=Path, default=scores, help="folder of score files")
    parser.add_argument("--runs", type=Path, default=runs, help="folder of run folders")
    parser.add_argument("--open", action="store_true", help="show the page in a browser")
    parser.add_argument("--reps", type=int, default=2000, help="bootstrap samples (2000)")
    arguments = parser.parse_args()
    for folder in (arguments.scores, arguments.runs):
        if folder not in (scores, runs) and not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
    if arguments.reps < 100:
        raise UserError(f"--reps {arguments.reps} is not valid: at least 100 are needed")
    return arguments


def main() -> None:
    """Parse the flags, write the report, and print where it is and what it lacks."""
    arguments = _arguments()
    try:
        from results.page import write_html, write_markdown
        from results.panels import gather
        from results.report import Report
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install -r {NEEDED}") from None
    output = arguments.output or arguments.scores / "report"
    findings = gather(arguments.scores, arguments.runs)
    report = Report(findings, output, arguments.reps, arguments.scores / "random")
    page = report.path("index.html")
    write_html(report, page)
    write_markdown(report, report.path("report.md"))
    report.close()
    for line in report.problems:
        print(f"note: {line}", file=sys.stderr)
    print(f"tables and figures: {output.resolve()}")
    print(f"page:               {page.resolve()}")
    if arguments.open and not webbrowser.open(page.resolve().as_uri()):
        print("no browser could be started; open the page by hand")


if __name__ == "__main__":
    cli.run_command(main)
