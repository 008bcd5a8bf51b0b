"""Time and memory of one full-size training step and of its parts::

    python -m benchmarks.train_step                     # Atari, float32, the machine's best device
    python -m benchmarks.train_step --case all --precision both --baseline --save cpu
    python -m benchmarks.train_step --scan all          # every scan backend that runs here
    python -m benchmarks.train_step --against storm     # PaMoRL's step and STORM's in turns

``odd_even_full`` is the odd-even scan with decays that are expanded to the size of the states, as
for a generic scan library. ``--baseline`` also times the step with that scan, eager and in float32.
It alternates with the row's own step, so that other work on a shared machine slows both down alike.
``of baseline`` is the median of the ratios of their times. ``--against CASE`` times the whole step
of another case in the same way, in the row's own precision; ``of storm`` is then the ratio of this
row's step to STORM's. With a graph, every part is timed as a
graph of its own. ``floor`` is the time that the step's
matrix products and convolutions (``TFLOP``) would take at the speed of one large product, measured
next to it. ``computing`` is the fraction of the time during which the cores are busy, or during
which kernels run on CUDA.

Each line is measured in a separate process, so that its peak memory is that of the line alone. The
peak is that of the whole process on the CPU (Python and torch take about 0.4 GB of it) and that of
torch's tensors on CUDA.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import measure
from benchmarks.cases import ACTIONS, CASES, OTHERS, STORED, case_parts
from benchmarks.scan import full_operands
from pwm_core.commands.cli import run_command
from pwm_core.config_file import load_config
from pwm_core.errors import UserError
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.scan import BACKENDS, available_backends
from pwm_core.models.world_model import WorldModel
from pwm_core.runtime import find_device, use_precision
from pwm_core.training.agent import Agent
from pwm_core.training.cuda_graph import EAGER_CALLS, CudaCapture, CudaGraph
from pwm_core.training.methods import make_agent
from pwm_core.training.replay_buffer import ReplayBuffer, TransitionSpec

PRECISIONS = ("fp32", "bf16")
COMPILES = ("off", "compile", "graph", "compile+graph")
FULL = "odd_even_full"


def _filled_replay(spec: TransitionSpec, stored: int, device: torch.device) -> ReplayBuffer:
    """A replay of noise with a new episode every 200 steps; timings do not depend on values."""
    replay = ReplayBuffer(spec, 1, stored, device)
    generator = torch.Generator().manual_seed(0)
    for step in range(stored):
        obs = torch.rand((1, *spec.obs.shape), generator=generator)
        obs = (obs * 255).to(torch.uint8) if spec.obs.dtype == torch.uint8 else obs
        action = torch.rand((1, *spec.action.shape), generator=generator)
        action = (action * ACTIONS).long() if spec.action.dtype == torch.int64 else action
        first = torch.tensor([step % 200 == 0])
        replay.add(obs.numpy(), action.numpy(), action.new_zeros(1).numpy(), first, first)
    return replay


def full_size(
    case: str, overrides: list[str], device: torch.device, *, stored: int = STORED
) -> tuple[Agent, ReplayBuffer]:
    """The agent of a case's full config, and a replay with ``stored`` steps of noise."""
    config = load_config((CASES | OTHERS)[case], overrides=overrides)
    use_precision(config.BasicSettings, device)
    torch.manual_seed(0)
    codec, policy, spec = case_parts(case, config)
    world_model = WorldModel(config.Models, codec, policy)
    agent = make_agent(config, world_model, ActorCritic(config.Models, policy), device)
    return agent, _filled_replay(spec, stored, device)


def _use_scan(agent: Agent, scan: str) -> None:
    """Make the blocks of the sequence model use :func:`full_operands` if ``scan`` is FULL."""
    if scan == FULL:
        for block in agent.world_model.sequence.blocks:
            block.attend = full_operands


def in_own_precision(agent: Agent, call: Callable[[], Any]) -> Callable[[], Any]:
    """``call`` with the TF32 setting of ``agent``, whatever agent was made or timed last."""

    def timed() -> Any:
        use_precision(agent.config.BasicSettings, agent.device)
        return call()

    return timed


def _baseline(case: str, device: torch.device) -> Callable[[], Any]:
    """The whole step, eager, in float32 and with :func:`full_operands` as its scan."""
    agent, replay = full_size(case, _overrides("fp32", FULL, "off"), device)
    _use_scan(agent, FULL)
    step = agent.training_step(replay)
    return in_own_precision(agent, lambda: step(world_model=True, actor_critic=True))


def _whole_step(case: str, overrides: list[str], device: torch.device) -> Callable[[], Any]:
    """The whole step of another case, ready to be timed."""
    agent, replay = full_size(case, overrides, device)
    step = agent.training_step(replay)
    for _ in range(EAGER_CALLS + 1 if agent.uses_cuda_graph else 1):
        step(world_model=True, actor_critic=True)
    check_captured(step)
    return in_own_precision(agent, lambda: step(world_model=True, actor_critic=True))


def check_captured(step: Callable[..., Any]) -> None:
    """Refuse to time an eager step in the name of a graph.

    Args:
        step: a training step after its first calls.

    Raises:
        UserError: it was to be a CUDA graph, and runs eagerly.
    """
    if getattr(step, "eager", False):
        raise UserError("the step runs eagerly, because the CUDA graph cannot be used (see above)")


def _share_computing(step: Callable[[], Any], device: torch.device, wall: float) -> float:
    """The fraction of a step's time during which the cores are busy or kernels run on CUDA.

    Args:
        wall: seconds of a step without the profiler, which slows down the host.
    """
    if device.type == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            measure.synchronize(device)
        kernels = sum(event.self_device_time_total for event in profile.key_averages())
        return kernels / 1e6 / wall
    began, used = time.perf_counter(), time.process_time()
    step()
    wall = time.perf_counter() - began
    return (time.process_time() - used) / wall / torch.get_num_threads()


def as_graphs(
    parts: dict[str, Callable[[], Any]],
    *,
    on_device: bool,
    capture: Callable[[], Any] = CudaCapture,
) -> dict[str, Callable[[], Any]]:
    """Every part as a CUDA graph of its own, so that it is timed as it runs inside the step.

    Args:
        on_device: whether the replay is on the device; else sampling stays eager.
        capture: see :class:`CudaGraph`.
    """
    return {
        name: CudaGraph(part, capture) if name != "replay" or on_device else part
        for name, part in parts.items()
    }


def _overrides(precision: str, scan: str, compiled: str) -> list[str]:
    return [
        f"Models.WorldModel.Scan={'odd_even' if scan == FULL else scan}",
        f"BasicSettings.UseAmp={'true' if precision == 'bf16' else 'false'}",
        f"BasicSettings.Compile={compiled}",
    ]


def measure_one(arguments: argparse.Namespace, target: torch.device) -> dict[str, Any]:
    """A row with the seconds of a step and of its parts, and the peak memory."""
    case, precision, scan = arguments.case, arguments.precision, arguments.scan
    agent, replay = full_size(case, _overrides(precision, scan, arguments.compile), target)
    _use_scan(agent, scan)
    settings = agent.config.JointTrainAgent
    batches = agent.draw(replay)
    trajectory = agent.imagine(*batches)
    parts = {
        "replay": lambda: agent.draw(replay),
        "world model": lambda: agent.train_world_model(batches[0]),
        "imagination": lambda: agent.imagine(*batches),
        "actor-critic": lambda: agent.train_actor_critic(trajectory),
    }
    row: dict[str, Any] = {
        "case": case, "precision": precision, "scan": scan, "compile": arguments.compile,
    }  # fmt: skip
    update = agent.training_step(replay)
    if agent.uses_cuda_graph:
        timed = as_graphs(parts, on_device=replay.place.type == "cuda")
    else:
        timed = dict(parts)
    timed |= {"step": lambda: update(world_model=True, actor_critic=True)}
    timed = {name: in_own_precision(agent, call) for name, call in timed.items()}
    for _ in range(EAGER_CALLS + 1 if agent.uses_cuda_graph else 1):
        for call in timed.values():
            call()
    check_captured(update)
    row["peak (GB)"] = measure.peak_gigabytes(target)
    others = {}
    if arguments.baseline:
        others["baseline"] = _baseline(case, target)
    if arguments.against:
        overrides = _overrides(precision, scan, arguments.compile)
        others[arguments.against] = _whole_step(arguments.against, overrides, target)
    timed |= others
    times = measure.turn_by_turn(list(timed.values()), target, arguments.repeats)
    for name, taken in zip(timed, times, strict=True):
        row[f"{name} (s)"] = statistics.median(taken)
    taken = dict(zip(timed, times, strict=True))
    for name in others:
        pairs = zip(taken["step"], taken[name], strict=True)
        row[f"of {name}"] = statistics.median(ours / theirs for ours, theirs in pairs)
    row["steps/s"] = 1 / row["step (s)"]
    row["transitions/s"] = settings.BatchSize * settings.BatchLength / row["step (s)"]
    row["replay share"] = row["replay (s)"] / row["step (s)"]
    operations = sum(measure.flops(part) for part in parts.values())
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    row["TFLOP"] = operations / 1e12
    row["floor (s)"] = operations / measure.peak_flops(target, dtype)
    row["computing"] = _share_computing(timed["step"], target, row["step (s)"])
    return row


def main() -> None:
    """Print the table; with ``--save NAME`` also write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=[*CASES, *OTHERS, "all"], default="atari")
    parser.add_argument("--precision", choices=[*PRECISIONS, "both"], default="fp32")
    parser.add_argument("--scan", choices=[*BACKENDS, FULL, "all"], default="chunked")
    parser.add_argument("--compile", choices=[*COMPILES, "all"], default="off")
    parser.add_argument(
        "--baseline", action="store_true", help="time the step with odd_even_full too"
    )
    parser.add_argument(
        "--against",
        choices=CASES | OTHERS,
        help="time this case's step in turns with each row's own",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", metavar="NAME", help="benchmarks/results/train_step_NAME.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    if arguments.case in OTHERS and (arguments.baseline or arguments.scan != "chunked"):
        raise UserError(f"--case {arguments.case} has no scan, so no --baseline and no --scan")
    if arguments.one:
        print(json.dumps(measure_one(arguments, device)))
        return
    rows = []
    for case, precision, scan, compiled in itertools.product(
        CASES if arguments.case == "all" else [arguments.case],
        PRECISIONS if arguments.precision == "both" else [arguments.precision],
        [*available_backends(device), FULL] if arguments.scan == "all" else [arguments.scan],
        (COMPILES if device.type == "cuda" else COMPILES[:2])
        if arguments.compile == "all"
        else [arguments.compile],
    ):
        given = ["--case", case, "--precision", precision, "--scan", scan, "--compile", compiled]
        given += ["--device", arguments.device, "--repeats", str(arguments.repeats)]
        given += ["--baseline"] * arguments.baseline
        given += ["--against", arguments.against] * bool(arguments.against)
        rows.append(measure.in_own_process("train_step", "--one", *given))
    print(measure.table(rows))
    if arguments.save:
        print(f"\nsaved {measure.save(f'train_step_{arguments.save}', rows, device)}")


if __name__ == "__main__":
    run_command(main)
