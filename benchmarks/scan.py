"""Time and memory of the scan backends, and the time of sequence models by context length::

    python -m benchmarks.scan --save cpu            # both tables, JSON and PNG
    python -m benchmarks.scan --part backends --tokens 1024

``backends`` times linear attention over sequences of T steps, forward and forward + backward. A
batch has ``--tokens`` tokens, or one sequence if T is larger. ``odd_even full`` is the odd-even
scan with decays that are expanded to the size of the states, as for a generic scan library. Each
line is measured in a separate process. ``extra`` is the peak memory of the process minus that of
its inputs (on CUDA: of torch's tensors).

``growth`` times one layer with a context of L steps: linear attention, softmax attention
(``scaled_dot_product_attention``, with a cache of keys and values for single steps) and a GRU, all
of the same width. ``training`` is forward + backward over the L steps of one sequence.
``inference`` is one more step, and ``imagination`` is one more step from each of 64 states. (Only
here, L is the length of a context.)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure
from pwm_core.commands.cli import run_command
from pwm_core.config_file import load_config
from pwm_core.models.scan import (
    AttentionOutput,
    States,
    available_backends,
    linear_attention,
    linear_recurrence,
)
from pwm_core.models.sequence_models.memory import RecurrentMemory
from pwm_core.runtime import find_device, use_precision

WIDTH = 128
FULL = "odd_even full"
FLA = "flash-linear-attention"
LENGTHS = (16, 64, 256, 1024, 4096)
STARTS = 64


def full_operands(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, reset: Tensor | None = None,
    initial_state: Tensor | None = None, *, return_states: bool = False, **options: Any,
) -> AttentionOutput:  # fmt: skip
    """``linear_attention`` by the odd-even scan with decays expanded to the states' size."""
    decay = log_decay.exp()
    if reset is not None:
        decay = decay.masked_fill(reset.bool().unsqueeze(-1), 0.0)
    update = k.unsqueeze(-1) * v.unsqueeze(-2)
    full = decay.unsqueeze(-1).expand_as(update).contiguous()
    states = linear_recurrence(full, update, initial_state, backend="odd_even")
    output = (q.unsqueeze(-2) @ states).squeeze(-2)
    kept = States(q.shape[1], states, torch.ones_like(decay).unsqueeze(2))
    return AttentionOutput(output, states[:, -1], kept if return_states else None)


def _attention(backend: str) -> Callable[..., Tensor]:
    """A function (q, k, v, log g) -> output.

    q, k and log g are (B, T, E); v and the output are (B, T, V).
    """
    if backend == FULL:
        return lambda *inputs: full_operands(*inputs).output
    if backend == FLA:
        from fla.ops.gla import chunk_gla

        return lambda q, k, v, g: chunk_gla(*(x.unsqueeze(2) for x in (q, k, v, g)), scale=1.0)[
            0
        ].squeeze(2)
    return lambda *inputs: linear_attention(*inputs, backend=backend).output


def backends(device: torch.device) -> list[str]:
    """The backends that can be timed on ``device``."""
    fla = device.type == "cuda" and importlib.util.find_spec("fla") is not None
    return [*available_backends(device), FULL] + [FLA] * fla


def measure_backend(
    backend: str, length: int, tokens: int, target: torch.device, repeats: int
) -> dict[str, Any]:
    """One row of the backends' table."""
    batch = max(1, tokens // length)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(batch, length, WIDTH, generator=generator) for _ in range(3))
    log_decay = F.logsigmoid(torch.randn(batch, length, WIDTH, generator=generator) + 2)
    inputs = [x.to(target).requires_grad_() for x in (q, k, v, log_decay)]
    attention = _attention(backend)

    def forward() -> None:
        with torch.no_grad():
            attention(*inputs)

    def both() -> None:
        for x in inputs:
            x.grad = None
        attention(*inputs).sum().backward()

    warm = [x.detach()[:, :16].clone().requires_grad_() for x in inputs]
    attention(*warm).sum().backward()  # load libraries and start threads before the measurement
    before = measure.peak_gigabytes(target)
    row = {"backend": backend, "T": length, "B": batch}
    row["forward (ms)"] = 1e3 * measure.seconds(forward, target, repeats)
    row["both (ms)"] = 1e3 * measure.seconds(both, target, repeats)
    row["extra (MB)"] = 1e3 * (measure.peak_gigabytes(target) - before)
    return row


# ------------------------------------------------------------------- growth with the context

Pair = tuple[Callable[[], Any], Callable[[], Any]]
"""Two functions: training on a context, and one more step from each of a number of states."""


def _linear_layer(length: int, starts: int, device: torch.device) -> Pair:
    projection = nn.Linear(WIDTH, 4 * WIDTH, bias=False).to(device)
    context = torch.randn(1, length, WIDTH, device=device)
    step = torch.randn(starts, WIDTH, device=device)
    memory = RecurrentMemory(torch.zeros(starts, WIDTH, WIDTH, device=device))

    def project(x: Tensor) -> tuple[Tensor, ...]:
        q, k, v, g = projection(x).split(WIDTH, dim=-1)
        return 1 + F.elu(q), 1 + F.elu(k), v, F.logsigmoid(g)

    return (
        lambda: linear_attention(*project(context)).output.sum().backward(),
        lambda: memory.step(*project(step)),
    )


def _softmax_layer(length: int, starts: int, device: torch.device) -> Pair:
    projection = nn.Linear(WIDTH, 3 * WIDTH, bias=False).to(device)
    context = torch.randn(1, length, WIDTH, device=device)
    step = torch.randn(starts, 1, WIDTH, device=device)
    keys, values = (torch.randn(starts, length, WIDTH, device=device) for _ in range(2))

    def train() -> None:
        q, k, v = projection(context).unsqueeze(1).split(WIDTH, dim=-1)  # (1, 1, context, WIDTH)
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    def one_more() -> Tensor:
        q, keys[:, -1:], values[:, -1:] = projection(step).split(WIDTH, dim=-1)
        return F.scaled_dot_product_attention(*(x.unsqueeze(1) for x in (q, keys, values)))

    return train, one_more


def _recurrent_layer(length: int, starts: int, device: torch.device) -> Pair:
    gru = nn.GRU(WIDTH, WIDTH, batch_first=True).to(device)
    context = torch.randn(1, length, WIDTH, device=device)
    step, state = torch.randn(starts, 1, WIDTH, device=device), None

    def one_more() -> None:
        nonlocal state
        _, state = gru(step, state)

    return lambda: gru(context)[0].sum().backward(), one_more


LAYERS = {
    "linear attention": _linear_layer,
    "softmax attention": _softmax_layer,
    "GRU": _recurrent_layer,
}


def measure_growth(length: int, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """A row per layer with the milliseconds of training, inference and imagination."""
    rows = []
    for name, make in LAYERS.items():
        torch.manual_seed(0)
        train, _ = make(length, 1, device)
        row: dict[str, Any] = {"layer": name, "L": length}
        row["training (ms)"] = 1e3 * measure.seconds(train, device, repeats)
        for kind, starts in (("inference", 1), ("imagination", STARTS)):
            step = torch.no_grad()(make(length, starts, device)[1])
            row[f"{kind} (ms)"] = 1e3 * measure.seconds(step, device, 10 * repeats)
        rows.append(row)
    return rows


def draw(rows: list[dict[str, Any]], path: Path, hardware: str) -> None:
    """Draw the growth table as three panels with logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = ("training", "inference", "imagination")
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(12, 3.6))
    for axis, kind in zip(axes, kinds, strict=True):
        for name in LAYERS:
            points = [(row["L"], row[f"{kind} (ms)"]) for row in rows if row["layer"] == name]
            axis.plot(*zip(*points, strict=True), "o-", ms=3, label=name)
        title = kind if kind == "training" else f"{kind}: one step"
        title += f" from {STARTS} states" if kind == "imagination" else ""
        axis.set(title=title, xlabel="context L (steps)", xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("time (ms)")
    axes[0].legend()
    figure.suptitle(f"one layer, width {WIDTH}, {hardware}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _measure_backends(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """The rows of the backends' table, each measured in a separate process."""
    rows = []
    for length in arguments.lengths:
        for backend in backends(device):
            given = ["--lengths", str(length), "--tokens", str(arguments.tokens)]
            given += ["--device", arguments.device, "--repeats", str(arguments.repeats)]
            rows.append(measure.in_own_process("scan", "--one", backend, *given))
    return rows


def main() -> None:
    """Print the tables; with ``--save NAME`` also write JSON and PNG."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=["backends", "growth", "all"], default="all")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--tokens", type=int, default=1024, help="B x T of the backends' batches")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", metavar="NAME", help="benchmarks/results/scan_NAME.json and .png")
    parser.add_argument("--one", metavar="BACKEND", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    use_precision(load_config("config_files/atari.yaml").BasicSettings, device)
    if arguments.one:
        row = measure_backend(
            arguments.one, arguments.lengths[0], arguments.tokens, device, arguments.repeats
        )
        print(json.dumps(row))
        return
    rows = []
    if arguments.part != "growth":
        rows += _measure_backends(arguments, device)
        print(measure.table(rows))
    growth = []
    if arguments.part != "backends":
        for length in arguments.lengths:
            growth += measure_growth(length, device, arguments.repeats)
        print(measure.table(growth))
    if arguments.save:
        path = measure.save(f"scan_{arguments.save}", rows + growth, device)
        if growth:
            draw(growth, path.with_suffix(".png"), measure.hardware_name(device))
        print(f"\nsaved {path}")


if __name__ == "__main__":
    run_command(main)
