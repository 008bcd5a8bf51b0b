"""Plot learning curves of runs as a PNG::

    python -m pwm_core.commands.plot ckpt/<run name> [more runs] -o curve.png

Every panel shows one quantity against agent steps.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pwm_core.commands import cli
from pwm_core.errors import UserError

PANELS = {
    "episode return": "Rollout/{task}_reward",
    "reconstruction loss": "WorldModel/recon_loss",
    "reward loss (nats)": "WorldModel/reward_loss",
    "policy entropy (nats)": "ActorCritic/entropy",
}


def read_metrics(path: Path, problems: list[str]) -> list[dict[str, float]]:
    """The records of a ``metrics.jsonl``.

    A line that is not a record, such as the last one after a crash, is left out and named in
    ``problems``.
    """
    records = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError
        except ValueError:
            what = "is cut short" if number == len(lines) else "cannot be read"
            problems.append(f"{path}: line {number} {what} and is left out")
            continue
        records.append(record)
    return records


def _task(run: Path) -> str:
    """The task in the ``run.json`` of a run's folder."""
    try:
        return json.loads((run / "run.json").read_text(encoding="utf-8"))["task"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{run / 'run.json'} is missing or damaged") from None


def plot(runs: list[Path], output: Path) -> None:
    """Draw one panel per quantity and one line per run, against agent steps.

    Raises:
        UserError: a run has no metrics or no task, or there is no such format as that of
            ``output``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.2))
    for run in runs:
        if not (run / "metrics.jsonl").is_file():
            raise UserError(f"{run} has no metrics.jsonl")
        task = _task(run)
        problems: list[str] = []
        records = read_metrics(run / "metrics.jsonl", problems)
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        for axis, (title, key) in zip(axes, PANELS.items(), strict=True):
            key = key.format(task=task)
            points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
            style = "o-" if key.startswith("Rollout") else "-"
            axis.plot(*zip(*points, strict=True), style, ms=3, label=run.name) if points else None
            axis.set(title=title, xlabel="agent steps")
    if axes[0].lines:
        axes[0].legend(fontsize=7)
    figure.tight_layout()
    try:
        figure.savefig(output, dpi=120)
    except ValueError as error:
        raise UserError(f"-o {output}: {error}") from None
    pyplot.close(figure)


def main() -> None:
    """Parse the flags, draw the figure and print its path."""
    parser = cli.Parser(description="Learning curves of runs as a PNG.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("-o", "--output", type=Path, default=Path("curve.png"))
    arguments = parser.parse_args()
    plot(arguments.runs, arguments.output)
    print(f"curve: {arguments.output.resolve()}")


if __name__ == "__main__":
    cli.run_command(main)
