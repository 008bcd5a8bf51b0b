"""Seconds and memory of one full-size training step, part by part, for every scan backend::

    python -m benchmarks.train_step                     # Atari, float32, the machine's best device
    python -m benchmarks.train_step --case dmc-proprio --precision bf16 --save cpu

Each line is measured in a process of its own, so that its peak memory is its own. The peak counts
the whole process on the CPU (Python and torch take about 0.4 GB of it) and torch's tensors on CUDA.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

from benchmarks import measure
from pwm_core.actor_critic import ActorCritic
from pwm_core.agent import Agent
from pwm_core.config import Config, load_config
from pwm_core.distributions import CategoricalPolicy, GaussianPolicy, Policy
from pwm_core.networks import Codec, ImageCodec, VectorCodec
from pwm_core.replay_buffer import Field, ReplayBuffer, TransitionSpec
from pwm_core.runtime import find_device
from pwm_core.scan import BACKENDS
from pwm_core.world_model import WorldModel

CASES = {
    "atari": "config_files/atari.yaml",
    "dmc-proprio": "config_files/dmc.yaml",
    "dmc-visual": "config_files/dmc.yaml",
}
ACTIONS = 6
OBSERVATIONS = 24
STORED = 4096


def _parts(case: str, config: Config) -> tuple[Codec, Policy, TransitionSpec]:
    """The sizes of SPEC's parameter table: 6 actions, 24 proprioceptive observations."""
    shape = config.BasicSettings.ObsShape
    pixels = Field(shape, torch.uint8)
    if case == "atari":
        spec = TransitionSpec(pixels, Field((), torch.int64))
        return ImageCodec(config.Models, shape), CategoricalPolicy(ACTIONS), spec
    agent = config.Models.Agent
    policy = GaussianPolicy(ACTIONS, agent.MinStd, agent.MaxStd)
    action = Field((ACTIONS,), torch.float32)
    if case == "dmc-visual":
        return ImageCodec(config.Models, shape), policy, TransitionSpec(pixels, action)
    vector = Field((OBSERVATIONS,), torch.float32)
    return VectorCodec(config.Models, OBSERVATIONS), policy, TransitionSpec(vector, action)


def _filled_replay(spec: TransitionSpec, config: Config, device: torch.device) -> ReplayBuffer:
    """Noise with an episode boundary every 200 steps: timings do not depend on the content."""
    replay = ReplayBuffer(spec, 1, STORED, device)
    generator = torch.Generator().manual_seed(0)
    for step in range(STORED):
        obs = torch.rand((1, *spec.obs.shape), generator=generator)
        obs = (obs * 255).to(torch.uint8) if spec.obs.dtype == torch.uint8 else obs
        action = torch.rand((1, *spec.action.shape), generator=generator)
        action = (action * ACTIONS).long() if spec.action.dtype == torch.int64 else action
        first = torch.tensor([step % 200 == 0])
        replay.add(obs.numpy(), action.numpy(), action.new_zeros(1).numpy(), first, first)
    return replay


def measure_one(case: str, precision: str, scan: str, device: str, repeats: int) -> dict[str, Any]:
    """One row: seconds of each part of a step, and the peak memory."""
    overrides = [
        f"Models.WorldModel.Scan={scan}",
        f"BasicSettings.UseAmp={'true' if precision == 'bf16' else 'false'}",
    ]
    config = load_config(CASES[case], overrides=overrides)
    target = find_device(device)
    torch.manual_seed(0)
    codec, policy, spec = _parts(case, config)
    world_model = WorldModel(config.Models, codec, policy)
    agent = Agent(config, world_model, ActorCritic(config.Models, policy), target)
    replay = _filled_replay(spec, config, target)
    settings = config.JointTrainAgent
    batch = replay.sample(settings.BatchSize, settings.BatchLength)
    trajectory = agent.imagine(batch)
    parts = {
        "replay": lambda: replay.sample(settings.BatchSize, settings.BatchLength),
        "world model": lambda: agent.train_world_model(batch),
        "imagination": lambda: agent.imagine(batch),
        "actor-critic": lambda: agent.train_actor_critic(trajectory),
    }
    row: dict[str, Any] = {"case": case, "precision": precision, "scan": scan}
    for name, part in parts.items():
        row[f"{name} (s)"] = measure.seconds(part, target, repeats)
    row["step (s)"] = sum(row[f"{name} (s)"] for name in parts)
    row["replay share"] = row["replay (s)"] / row["step (s)"]
    row["peak (GB)"] = measure.peak_gigabytes(target)
    return row


def main() -> None:
    """Print the table; with ``--save NAME`` write the JSON too."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=[*CASES, "all"], default="atari")
    parser.add_argument("--precision", choices=["fp32", "bf16", "both"], default="fp32")
    parser.add_argument("--scan", choices=[*BACKENDS, "all"], default="all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", metavar="NAME", help="benchmarks/results/train_step_NAME.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        row = measure_one(
            arguments.case,
            arguments.precision,
            arguments.scan,
            arguments.device,
            arguments.repeats,
        )
        print(json.dumps(row))
        return

    rows = []
    for case in CASES if arguments.case == "all" else [arguments.case]:
        for precision in (
            ("fp32", "bf16") if arguments.precision == "both" else [arguments.precision]
        ):
            for scan in BACKENDS if arguments.scan == "all" else [arguments.scan]:
                command = [sys.executable, "-m", "benchmarks.train_step", "--one"]
                command += ["--case", case, "--precision", precision, "--scan", scan]
                command += ["--device", arguments.device, "--repeats", str(arguments.repeats)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"measured {case} {precision} {scan}", file=sys.stderr)
    print(measure.table(rows))
    if arguments.save:
        device = find_device(arguments.device)
        print(f"\nsaved {measure.save(f'train_step_{arguments.save}', rows, device)}")


if __name__ == "__main__":
    main()
