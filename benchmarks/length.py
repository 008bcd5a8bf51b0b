"""Time and memory of batches with a fixed number of tokens, by the length of their sequences::

    python -m benchmarks.length --save cpu
    python -m benchmarks.length --case atari --tokens 1024

A batch has B sequences of T steps, and B x T is fixed. Measured are the chunked scan alone (forward
and backward, at the key and value width of Atari) and a whole world-model update at full size. Each
line is measured in a separate process. ``extra`` is the peak memory of the process minus that of
its models and inputs (on CUDA: of torch's tensors).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from benchmarks import measure
from benchmarks.cases import CASES
from benchmarks.scan import measure_backend
from benchmarks.train_step import full_size
from pwm_core.commands.cli import run_command
from pwm_core.runtime import find_device

LENGTHS = (64, 256, 1024, 4096)


def measure_update(
    case: str, precision: str, length: int, tokens: int, target: torch.device, repeats: int
) -> dict[str, Any]:
    """A row with one world-model update on ``tokens`` / ``length`` sequences."""
    batch_size = max(1, tokens // length)
    overrides = [
        f"JointTrainAgent={{BatchSize: {batch_size}, BatchLength: {length}}}",
        f"JointTrainAgent={{ImagineBatchSize: 1, BufferWarmUp: {length}}}",
        f"BasicSettings.UseAmp={'true' if precision == 'bf16' else 'false'}",
    ]
    agent, replay = full_size(case, overrides, target, stored=length + 64)
    agent.train_world_model(replay.sample(1, 64))  # allocate AdamW's state before the measurement
    batch = replay.sample(batch_size, length)
    before = measure.peak_gigabytes(target)
    seconds = measure.seconds(lambda: agent.train_world_model(batch), target, repeats)
    extra = 1e3 * (measure.peak_gigabytes(target) - before)
    what = f"world model, {case}, {precision}"
    return {"what": what, "T": length, "B": batch_size, "time (ms)": 1e3 * seconds,
            "extra (MB)": extra}  # fmt: skip


def measure_scan(length: int, tokens: int, target: torch.device, repeats: int) -> dict[str, Any]:
    """A row with the chunked scan, forward and backward."""
    row = measure_backend("chunked", length, tokens, target, repeats)
    return {"what": "scan", "T": length, "B": row["B"], "time (ms)": row["both (ms)"],
            "extra (MB)": row["extra (MB)"]}  # fmt: skip


def main() -> None:
    """Print the table; with ``--save NAME`` also write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=CASES, default="dmc-proprio")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--tokens", type=int, default=4096, help="B x T")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", metavar="NAME", help="benchmarks/results/length_NAME.json")
    parser.add_argument("--one", choices=["scan", "update"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    if arguments.one:
        sizes = (arguments.lengths[0], arguments.tokens, device, arguments.repeats)
        if arguments.one == "scan":
            row = measure_scan(*sizes)
        else:
            row = measure_update(arguments.case, arguments.precision, *sizes)
        print(json.dumps(row))
        return
    rows = []
    for one in ("scan", "update"):
        for length in arguments.lengths:
            sizes = ["--lengths", str(length), "--tokens", str(arguments.tokens)]
            sizes += ["--device", arguments.device, "--repeats", str(arguments.repeats)]
            case = ["--case", arguments.case, "--precision", arguments.precision]
            rows.append(measure.in_own_process("length", "--one", one, *case, *sizes))
    print(measure.table(rows))
    if arguments.save:
        print(f"\nsaved {measure.save(f'length_{arguments.save}', rows, device)}")


if __name__ == "__main__":
    run_command(main)
