"""Examine a trained run: how well its world model predicts, its critic judges, its policy explores.

If a run has learnt little, this tells which part to look at::

    python -m pwm_core.commands.examine NAME
    python -m pwm_core.commands.examine NAME -o FILE.json

The agent plays some steps of its own task. From many of them the world model predicts what follows,
and the prediction is compared with what did.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from pwm_core.commands import cli
from pwm_core.commands.record import RECORDING_SEEDS, play
from pwm_core.commands.trained_run import TrainedRun, load_agent, open_run
from pwm_core.domain import Domain, find_domain
from pwm_core.errors import UserError
from pwm_core.models.actor_critic import CRITICS
from pwm_core.paths import find_logdir
from pwm_core.runs import pretrained
from pwm_core.runs.files import write_text
from pwm_core.runtime import find_device, seed_everything, use_precision, use_threads
from pwm_core.training.evaluation import RandomAgent
from pwm_core.training.examination import Examination, Rewards, examine

SHOWN = (1, 2, 3, 5, 8, 10, 15)
"""The distances of a prediction that are printed, besides the last."""


@dataclass(frozen=True)
class Found:
    """What is printed and written.

    Attributes:
        run, task, step: what was examined.
        steps: how many steps were played.
        mean_return: of the finished episodes; None if there is none.
        random_rewarded: the share of as many random steps whose reward is not 0.
        examination: see there.
    """

    run: str
    task: str
    step: int
    steps: int
    mean_return: float | None
    random_rewarded: float
    examination: Examination


def run(domain: Domain, trained: TrainedRun, arguments: argparse.Namespace) -> Found:
    """Play with the run's checkpoint, as long at random, and examine the agent.

    Raises:
        UserError: the flags, the run or the machine do not allow it.
    """
    config, task, steps = trained.config, trained.task, arguments.steps
    if arguments.given < 2:
        raise UserError(
            "-given: at least 2, because imagination starts from a state that a step led to"
        )
    (step,) = trained.folder.select(arguments.checkpoint)
    use_threads(config.BasicSettings.Threads)
    device = find_device(arguments.device)
    use_precision(config.BasicSettings, device)
    seed = config.BasicSettings.Seed
    seed_everything(seed)
    env = domain.make_env(config, task, 1, seed + RECORDING_SEEDS)
    try:
        agent = load_agent(domain, trained, env, step, device)
        recording = play(agent, env, steps, {}, phase="the agent")
        random = play(RandomAgent(env, seed), env, steps, {}, phase="random play")
    finally:
        env.close()
    given, horizon = arguments.given, config.JointTrainAgent.ImagineHorizon
    found = examine(agent, recording, given, horizon, arguments.samples)
    if not _has_critic(trained, step):
        found = replace(found, value=None)
    returns = recording.about["returns"]
    mean = float(np.mean(returns)) if returns else None
    rewarded = float((random.reward != 0).mean())
    return Found(trained.folder.name, task, step, steps, mean, rewarded, found)


def _has_critic(trained: TrainedRun, step: int) -> bool:
    """Whether the checkpoint has a critic. Those of published agents have none."""
    weights = trained.folder.load_weights(step, torch.device("cpu"))["actor_critic"]
    return any(key.startswith(CRITICS) for key in weights)


def describe(found: Found) -> str:
    """The report, some lines of text."""
    seen, last = found.examination, found.examination.ahead[-1].steps
    told = "no episode ended" if found.mean_return is None else f"return {found.mean_return:.1f}"
    lines = [
        f"{found.run}, step {found.step}, on {found.task}: {found.steps} steps of its own, {told}",
        "",
        f"World model, {seen.sequences} sequences, {seen.given} real steps before each prediction.",
        "Errors: 1 is that of predicting no change. Reward: the share of its variance explained.",
        "",
        "steps ahead  predicted  reconstructed  reward",
    ]
    for ahead in seen.ahead:
        if ahead.steps in (*SHOWN, last):
            reward = "     -" if ahead.reward is None else f"{ahead.reward:6.2f}"
            lines.append(
                f"{ahead.steps:11}  {ahead.predicted:9.3f}  {ahead.reconstructed:13.3f}  {reward}"
            )
    lines += ["", *_mean_rewards(seen.rewards), ""]
    if seen.value is None:
        lines.append(
            "Critic: not compared. Published agents have none, and of episodes that are cut off "
            "the return is not known."
        )
    else:
        value = seen.value
        told = "" if value.correlation is None else f"correlation {value.correlation:.2f}, "
        lines.append(
            f"Critic against the return that followed: {told}means {value.value:.2f} and "
            f"{value.observed:.2f}, {value.states} states."
        )
    lines += [
        f"Policy: entropy {seen.entropy:.2f} nats a step.",
        f"Rewards other than 0: {seen.rewarded:.1%} of its steps, {found.random_rewarded:.1%} of "
        "random ones.",
    ]
    return "\n".join(lines)


def _mean_rewards(rewards: list[Rewards]) -> list[str]:
    """A line per kind of reward."""
    spans = "  ".join(f"{f'steps {span.first} to {span.last}':>21}" for span in rewards)
    lines = [f"Mean reward                           {spans}"]
    for name, kind in (
        ("real", "real"),
        ("predicted, with the actions taken", "predicted"),
        ("imagined, with the policy's own", "imagined"),
    ):
        found = [getattr(span, kind) for span in rewards]
        told = "  ".join(f"{mean.mean:10.4g} +- {mean.error:7.2g}" for mean in found)
        lines.append(f"{name:36}  {told}")
    return lines


def main() -> None:
    """Examine the run that the flags name.

    Raises:
        UserError: there is no such run, or the flags do not fit it.
    """
    arguments = cli.examine_parser().parse_args()
    if arguments.checkpoint == "all":
        raise UserError("-checkpoint: examine one at a time, last or a step")
    logdir = find_logdir(arguments.logdir)
    domain = find_domain(pretrained.open_folder(arguments.name, logdir).metadata()["domain"])
    flags = ["-n", arguments.name, "-logdir", str(logdir.root)]
    flags += ["-set", "BasicSettings.Compile=off"]  # it would take longer than what it saves here
    flags += [part for override in arguments.set for part in ("-set", override)]
    trained = open_run(domain, cli.eval_parser(domain).parse_args(flags))
    found = run(domain, trained, arguments)
    print(describe(found))
    if arguments.output is not None:
        write_text(arguments.output, json.dumps(asdict(found), indent=1) + "\n")
        print(f"written: {arguments.output}")


if __name__ == "__main__":
    cli.run_command(main)
