"""Time and memory of the sequence models by the length of the context, and how they grow with it::

    python -m benchmarks.sequence_models --save cpu
    python -m benchmarks.sequence_models --models gru "ssm, scan" --lengths 64 256 --hidden 512

All models have the same width, blocks and input layer. L is the length of the context:

``training``        forward and backward over one sequence of L steps without a reset inside
``inference``       one step of one acting agent that has seen L steps
``start``           from the states of a replayed sequence to one from which imagination can step
``imagination``     one imagined step from ``--starts`` such states, a mean over 15 steps
``memory``          what training adds to the peak of the process (on CUDA: of torch's tensors)
``state``           bytes that an acting agent keeps between two steps

Attention sees all L steps when it acts and imagines. An acting step computes the window anew,
because its positions move (as STORM does); imagination has a cache of keys and values.

The exponent is the slope of a straight line through the points of ``--fit-from`` steps and more,
both axes logarithmic. Below, constant costs hide the growth. Each row is measured in a separate
process.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import measure
from pwm_core.commands.cli import run_command
from pwm_core.config_file import load_config
from pwm_core.errors import UserError
from pwm_core.models.sequence_models import make_sequence_model
from pwm_core.models.sequence_models.base import SequenceModel
from pwm_core.runtime import find_device, use_tensor_float

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
HORIZON = 15
ACTIONS = 6


class Family(NamedTuple):
    """A row of the slides' complexity table.

    Attributes:
        overrides: of ``Models.WorldModel``.
        slides: the order that the slides state for training, inference and imagination.
    """

    overrides: str
    slides: tuple[str, str, str]


MODELS = {
    "attention": Family("SequenceModel: attention", ("O(L^2)", "O(L^2)", "O((L+H)^2)")),
    "GRU": Family("SequenceModel: gru", ("O(L)", "O(1)", "O(1)")),
    "SSM, FFT": Family("SequenceModel: ssm, SSMScan: fft", ("O(L log L)", "O(1)", "O(1)")),
    "SSM, scan": Family("SequenceModel: ssm, SSMScan: odd_even", ("O(L)", "O(1)", "O(1)")),
    "linear attention": Family("SequenceModel: linear_attention", ("O(L)", "O(1)", "O(1)")),
}
COLUMNS = {
    "training": "training (ms)",
    "inference": "inference (ms)",
    "imagination": "imagination (ms)",
    "start": "start (ms)",
    "memory": "memory (MB)",
    "state": "state (kB)",
}
"""What is measured: its name in the table of exponents, and its column."""


def make_model(name: str, length: int, hidden: int, device: torch.device) -> SequenceModel:
    """The model called ``name`` without dropout; attention sees ``length`` steps."""
    windows = f"Positions: {length + HORIZON}, ActingWindow: {length}, ImagineWindow: {length}"
    overrides = [
        "JointTrainAgent={BatchLength: 2, ImagineContext: 2}",
        f"JointTrainAgent.ImagineHorizon={HORIZON}",
        f"Models.Hidden={hidden}",
        f"Models.WorldModel={{{MODELS[name].overrides}, {windows}, Dropout: 0}}",
    ]
    torch.manual_seed(0)
    config = load_config("config_files/atari.yaml", overrides=overrides)
    return make_sequence_model(config.Models, ACTIONS).to(device)


def make_inputs(model: SequenceModel, rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random latents and actions (rows, length, ...), and is_first without a reset."""
    weight = model.input_layer.first.weight
    latent = torch.randn(rows, length, len(weight) - ACTIONS, device=weight.device)
    action = torch.randn(rows, length, ACTIONS, device=weight.device)
    return latent, action, torch.zeros(rows, length, dtype=torch.bool, device=weight.device)


def measure_model(
    name: str, length: int, hidden: int, starts: int, device: torch.device, repeats: int
) -> dict[str, Any]:
    """One row of the table."""
    model = make_model(name, length, hidden, device)
    row: dict[str, Any] = {"model": name, "L": length}
    inputs = make_inputs(model, 1, length)

    def train(latent: Tensor, action: Tensor, is_first: Tensor) -> None:
        model.zero_grad()
        model(latent, action, is_first)[0].square().mean().backward()

    train(*(x[:, :4] for x in inputs))  # load libraries and allocate gradients
    before = measure.peak_gigabytes(device)
    row[COLUMNS["training"]] = 1e3 * measure.seconds(lambda: train(*inputs), device, repeats)
    row[COLUMNS["memory"]] = 1e3 * (measure.peak_gigabytes(device) - before)
    with torch.no_grad():
        row |= _measure_steps(model.eval(), length, starts, device, repeats)
    return row


def _measure_steps(
    model: SequenceModel, length: int, starts: int, device: torch.device, repeats: int
) -> dict[str, float]:
    """The columns of acting and imagination."""
    state = model.initial_state(1, device)
    latent, action, _ = make_inputs(model, starts, HORIZON)

    def act() -> None:
        model.step(latent[:1, 0], action[:1, 0], state)

    _, history = model(*make_inputs(model, starts, length), return_history=True)
    last, none = slice(length - 1, length), torch.zeros(starts, dtype=torch.bool, device=device)
    imagined: list[Any] = []  # states to imagine from: one for the warm-up and for every repeat

    def start() -> None:
        imagined.append(history.start(last, none, HORIZON))

    def imagine() -> None:
        rollout = imagined.pop()
        for h in range(HORIZON):
            model.step(latent[:, h], action[:, h], rollout)

    return {
        COLUMNS["inference"]: 1e3 * measure.seconds(act, device, 5 * repeats),
        COLUMNS["start"]: 1e3 * measure.seconds(start, device, repeats),
        COLUMNS["imagination"]: 1e3 * measure.seconds(imagine, device, repeats) / HORIZON,
        COLUMNS["state"]: _bytes(state.state_dict()) / 1e3,
    }


def _bytes(values: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(values, Tensor):
        return values.numel() * values.element_size()
    return sum(map(_bytes, values.values() if isinstance(values, dict) else values))


def exponent(lengths: list[int], values: list[float]) -> float:
    """The slope of the line through the points, both axes logarithmic; NaN if there is none."""
    points = [(x, y) for x, y in zip(lengths, values, strict=True) if y > 0]
    if len(points) < 2:
        return float("nan")
    return float(np.polyfit(*np.log(np.array(points, float)).T, 1)[0])


def fit(rows: list[dict[str, Any]], fit_from: int) -> list[dict[str, Any]]:
    """A row per model: the measured exponents, and the orders that the slides state."""
    fits = []
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name and row["L"] >= fit_from]
        lengths = [row["L"] for row in own]
        found: dict[str, Any] = {"model": name, "fitted": f"L {min(lengths)} to {max(lengths)}"}
        for kind, column in COLUMNS.items():
            slope = exponent(lengths, [row[column] for row in own])
            found[f"{kind}: L^"] = round(slope, 2) + 0.0  # and not -0.0
        for kind, order in zip(COLUMNS, MODELS[name].slides, strict=False):
            found[f"{kind}, slides"] = order
        fits.append(found)
    return fits


def draw(rows: list[dict[str, Any]], fits: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the table as panels with logarithmic axes, the exponents in the legends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = ("training", "inference", "imagination", "memory")
    figure, axes = pyplot.subplots(1, len(shown), figsize=(16, 4.2))
    for axis, kind in zip(axes, shown, strict=True):
        for found in fits:
            name, column = found["model"], COLUMNS[kind]
            own = [row for row in rows if row["model"] == name and row[column] > 0]
            if own:  # what took no memory has no place on a logarithmic axis
                label = f"{name}: L^{found[f'{kind}: L^']:.2f}"
                values = [row["L"] for row in own], [row[column] for row in own]
                axis.loglog(*values, "o-", ms=3, label=label)
        heading = {"inference": "one acting step", "imagination": "one imagined step"}
        unit = COLUMNS[kind].partition(" ")[2].strip("()")
        axis.set(title=heading.get(kind, kind), xlabel="context L (steps)", ylabel=unit)
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("::")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--fit-from", type=int, default=1024, help="shortest length of the fit")
    parser.add_argument("--hidden", type=int, default=128, help="width of the models")
    parser.add_argument("--starts", type=int, default=4, help="states that imagination steps from")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", metavar="NAME", help="results/sequence_models_NAME.json and .png")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if max(arguments.lengths) < arguments.fit_from:
        raise UserError(f"--fit-from {arguments.fit_from}: no length is that large")
    return arguments


def main() -> None:
    """Print the tables; with ``--save NAME`` also write JSON and PNG."""
    arguments = _arguments()
    device = find_device(arguments.device)
    use_tensor_float(load_config("config_files/atari.yaml").BasicSettings.TF32)
    sizes = arguments.hidden, arguments.starts
    if arguments.one:
        name, length = arguments.models[0], arguments.lengths[0]
        print(json.dumps(measure_model(name, length, *sizes, device, arguments.repeats)))
        return
    rows = []
    for name in arguments.models:
        for length in arguments.lengths:
            one = ["--one", "--models", name, "--lengths", str(length), "--fit-from", "1"]
            one += ["--hidden", str(arguments.hidden), "--starts", str(arguments.starts)]
            one += ["--device", arguments.device, "--repeats", str(arguments.repeats)]
            rows.append(measure.in_own_process("sequence_models", *one))
    fits = fit(rows, arguments.fit_from)
    print(measure.table(rows), measure.table(fits), sep="\n\n")
    if arguments.save:
        path = measure.save(f"sequence_models_{arguments.save}", rows + fits, device)
        blocks = load_config("config_files/atari.yaml").Models.WorldModel.Blocks
        title = f"{blocks} blocks, width {arguments.hidden}, {measure.hardware_name(device)}"
        draw(rows, fits, path.with_suffix(".png"), title)
        print(f"\nsaved {path}")


if __name__ == "__main__":
    run_command(main)
