"""Estimates of a sweep's time and disk space, from measurements."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pwm_core.config import Config
from pwm_core.domain import find_domain
from pwm_core.errors import UserError
from pwm_core.paths import REPOSITORY
from sweep import times
from sweep.places import Places, read_json
from sweep.plan import Plan, relative
from sweep.run import Run

BENCHMARKS = REPOSITORY / "benchmarks" / "results"
COST = {
    "BasicSettings": ("ObsShape", "ObsType", "UseAmp", "FrameSkip"),
    "JointTrainAgent": (
        *("NumEnvs", "BatchSize", "BatchLength", "ImagineBatchSize", "ImagineContext"),
        *("ImagineHorizon", "TrainModelEverySteps", "TrainAgentEverySteps", "AgentUpdate"),
    ),
}
"""The time of a step depends on these keys and on the sizes of the models."""
SIZES = ("Hidden", "NumBin", "Stoch", "Discrete")
LAYERS = ("Stem", "MinRes", "MLPLayers", "MLPUnits", "SequenceModel", "Blocks", "HeadDivisor")


@dataclass(frozen=True)
class Speed:
    """Agent steps a second, and where they were measured."""

    rate: float
    source: str


@dataclass(frozen=True)
class Disk:
    """Bytes that a run needs while it trains, and bytes that it keeps afterwards."""

    training: int
    kept: int


def _cost(config: dict[str, Any]) -> list[Any]:
    """Return the values of a config that the time of a step depends on."""
    models = config.get("Models", {})
    found = [config.get(section, {}).get(key) for section, keys in COST.items() for key in keys]
    found += [models.get(key) for key in SIZES]
    found += [models.get("WorldModel", {}).get(key) for key in LAYERS]
    return [list(value) if isinstance(value, tuple) else value for value in found]


def _finished(places: Places) -> Iterator[tuple[dict[str, Any], str, float, str]]:
    """Yield (config, domain, steps per second, source) of all runs whose time was recorded."""
    collected = set()
    for path in sorted(places.results.glob("*.training.json")):
        name = path.name.removesuffix(".training.json")
        about, scores = read_json(path), places.scores(name)
        steps = _last_step(places.results / f"{name}.csv")
        if about.get("seconds") and steps and isinstance(scores.get("config"), dict):
            where = about.get("hardware", {})
            source = f"run {name} on {where.get('name')} ({where.get('device')})"
            collected.add(name)
            yield scores["config"], about["domain"], steps / about["seconds"], source
    for path in sorted(places.runs.glob(f"*/{times.FILE}")):
        name, about = path.parent.name, read_json(path.parent / "run.json")
        time = times.trained(places, name)
        try:
            config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if time and about and isinstance(config, dict) and name not in collected:
            where = about.get("hardware", {})
            source = f"run {name} on {where.get('name')} ({where.get('device')})"
            yield config, about["domain"], time.step / time.seconds, source


def _last_step(scores: Path) -> int:
    try:
        return int(scores.read_text(encoding="utf-8").splitlines()[-1].split(",")[0])
    except (OSError, ValueError, IndexError):
        return 0


def _benchmarked(run: Run) -> Iterator[Speed]:
    """Yield the speeds that ``python -m benchmarks.end_to_end`` measured with the run's config."""
    for path in sorted(BENCHMARKS.glob("end_to_end_*.json")):
        content = read_json(path)
        for row in content.get("rows", []):
            if row.get("config") == relative(run.config) and not row.get("changes"):
                machine = content.get("machine", {}).get("cpu", "?")
                yield Speed(row["steps/s"], f"{path.name} ({machine})")


def measured_speed(plan: Plan, run: Run, places: Places) -> Speed | None:
    """Return the measured speed of a run, or None where there is no measurement.

    It is the median over finished runs of the same cost, else a benchmark of the config file.
    """
    wanted = _cost(json.loads(plan.config(run).model_dump_json()))
    rates: dict[str, list[float]] = {}
    for config, domain, rate, source in _finished(places):
        if domain == run.domain and _cost(config) == wanted:
            rates.setdefault(source, []).append(rate)
    if rates:
        values = [rate for found in rates.values() for rate in found]
        more = f" and {len(rates) - 1} more" if len(rates) > 1 else ""
        return Speed(statistics.median(values), next(iter(rates)) + more)
    if run.overrides and any(not text.startswith("JointTrainAgent.SampleMax")
                             and not text.startswith("JointTrainAgent.BufferMax")
                             for text in run.overrides):  # fmt: skip
        return None
    return next(_benchmarked(run), None)


def _bytes(tree: Any) -> int:
    """Return the bytes of all tensors in nested dicts and lists."""
    if isinstance(tree, dict):
        return sum(_bytes(value) for value in tree.values())
    if isinstance(tree, list | tuple):
        return sum(_bytes(value) for value in tree)
    return getattr(tree, "nbytes", 0)


def measured_disk(plan: Plan, run: Run) -> Disk:
    """Return an upper bound on the disk space of a run.

    It is computed from a model and one transition of the task. Two resume points are kept while
    the run trains, a third while it is written, and one when the run is done. Each has the weights
    and an optimiser's two moments of every weight; the replay lies beside them once, and is
    deflated. With ``BufferStorage: disk`` it lies there a second time while the run trains.

    Raises:
        UserError: the environment cannot be made on this machine.
    """
    from pwm_core.commands.cli import make_agent

    domain, config = find_domain(run.domain), plan.config(run)
    env = domain.make_env(config, run.env_name, 1, run.seed)
    try:
        state = make_agent(domain, config, env, "cpu").state_dict()
        weights = _bytes([state["world_model"], state["actor_critic"]])
        steps = min(run.steps, config.JointTrainAgent.BufferMaxLength)
        replay = domain.transition(config, env).nbytes(steps)
    finally:
        env.close()
    kept = plan.sweep.keep or _checkpoints(config, run.steps)
    training = (max(kept, 2) + 1) * weights + 3 * 2 * weights + replay
    if config.JointTrainAgent.BufferStorage == "disk":
        training += replay
    return Disk(training, kept * weights + 2 * weights + replay)


def _checkpoints(config: Config, steps: int) -> int:
    return max(1, -(-steps // config.JointTrainAgent.SaveEverySteps))


def parallel(plan: Plan, slots: int | None) -> int:
    """Return the number of parallel runs: ``slots`` here, or as many as the Slurm array allows."""
    wanted = plan.sweep.resources
    return slots if slots else wanted.most_jobs * wanted.runs_per_job


def try_disk(plan: Plan, run: Run) -> Disk | str:
    """Return :func:`measured_disk`, or the reason why it is not known."""
    try:
        return measured_disk(plan, run)
    except UserError as error:
        return str(error)
