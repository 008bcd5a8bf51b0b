"""The report on all runs::

    python -m results [--open]

It reads ``eval_result/*.csv`` with their JSON files, the run folders under ``ckpt/`` and
``eval_result/published/``. It writes tables, figures and a self-contained page under
``eval_result/report/``.
"""

from __future__ import annotations

import sys
import webbrowser

from pwm_core.commands import cli
from pwm_core.errors import UserError
from results.flags import ResultsParser

NEEDED = "requirements-results.txt"


def _arguments() -> cli.argparse.Namespace:
    parser = ResultsParser("results", __doc__, "report")
    parser.add_argument("--open", action="store_true", help="show the page in a browser")
    return parser.checked()


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
