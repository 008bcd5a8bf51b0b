"""Measure the returns of random actions::

    python -m results.random_play dmc walker_walk reacher_easy --repeats 2,4,8
    python -m results.random_play dmc cartpole_balance --repeats 8 --film

Actions are uniform over the action space. ``eval_result/random/<domain>.csv`` holds one row per
task and action repeat, and its JSON describes how they were measured. Rows of other tasks are kept.
``--film`` also writes the first episode to ``eval_result/random/<task>.mp4``, which the report
shows beside the trained agent.
"""

from __future__ import annotations

import json
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import numpy as np
import pandas as pd

from pwm_core.commands.cli import Parser, run_command, seed_number
from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.domain import Domain, find_domain
from pwm_core.paths import find_logdir
from pwm_core.runs.files import locked, write_text
from pwm_core.runtime import git_commit, versions
from pwm_core.training.episode_videos import Episode, as_pictures, film
from pwm_core.training.evaluation import RandomAgent, play

FOLDER = find_logdir().scores / "random"
KEYS = ["task", "frame_skip"]


def measure(domain: Domain, config: Config, task: str, episodes: int, seed: int) -> list[Episode]:
    """Play whole episodes with random actions in one environment."""
    env = domain.make_env(config, task, 1, seed)
    try:
        return play(RandomAgent(env, seed), env, episodes, phase="random play")
    finally:
        env.close()


def record(domain: Domain, config: Config, task: str, seed: int, episode: Episode) -> Path:
    """Film ``episode`` by playing it again. Returns the path of the video.

    Raises:
        UserError: this machine cannot render.
    """
    visual = as_pictures(config)
    path = FOLDER / f"{domain.benchmark.short_name(task)}.mp4"
    for line in film(lambda n: domain.make_env(visual, task, n, seed), [episode], [path]):
        print(f"warning: {line}")
    return path


def add_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Write ``rows`` into the CSV ``path``. They replace rows of the same task and action
    repeat."""
    table = pd.DataFrame(rows)
    with locked(path.parent):  # other processes may add theirs
        if path.exists():
            table = pd.concat([pd.read_csv(path), table]).drop_duplicates(KEYS, keep="last")
        table = table.sort_values(KEYS)
        write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def _numbers(text: str) -> list[int]:
    if not all(part.isdigit() and int(part) > 0 for part in text.split(",")):
        raise ArgumentTypeError(f"{text} is not a list of numbers such as 2,4,8")
    return [int(part) for part in text.split(",")]


def _arguments() -> Namespace:
    parser = Parser(description="Measure what random actions return.")
    parser.add_argument("domain", help="such as dmc")
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--repeats", type=_numbers, default=None, help="BasicSettings.FrameSkip")
    parser.add_argument("--episodes", type=_numbers, default=[50], help="of each task (50)")
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--film", action="store_true", help="the first episode, as an mp4")
    return parser.parse_args()


def main() -> None:
    """Parse the flags, measure and write the results."""
    arguments = _arguments()
    domain, (episodes,) = find_domain(arguments.domain), arguments.episodes[:1]
    repeats = arguments.repeats or [
        load_config(domain.defaults, defaults=domain.defaults).BasicSettings.FrameSkip
    ]
    for task in arguments.tasks:
        for repeat in repeats:
            overrides = [f"BasicSettings.FrameSkip={repeat}"]
            config = load_config(domain.defaults, defaults=domain.defaults, overrides=overrides)
            domain.check_task(config, task)
            played = measure(domain, config, task, episodes, arguments.seed)
            returns = [episode.episode_return for episode in played]
            row = {
                "task": domain.benchmark.short_name(task),
                "frame_skip": repeat,
                "episodes": episodes,
            }
            row |= {"mean": np.mean(returns), "std": np.std(returns)}
            add_rows(FOLDER / f"{domain.name}.csv", [row])
            print(f"{task}, action repeat {repeat}: {np.mean(returns):.1f} ({episodes} episodes)")
            if arguments.film:
                print(f"video: {record(domain, config, task, arguments.seed, played[0])}")
    about = {
        "domain": domain.name,
        "actions": "uniform over the action space",
        "seed": arguments.seed,
        "versions": versions(),
        "commit": git_commit(),
    }
    write_text(FOLDER / f"{domain.name}.json", json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
