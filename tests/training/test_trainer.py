"""The real training loop and evaluation around an environment that counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pwm_core import cli
from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.envs import env_seeds
from pwm_core.errors import UserError
from pwm_core.eval import evaluate_run
from pwm_core.paths import find_logdir
from pwm_core.runs.files import replacing, write_text
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.tracking import JsonLines, Tracker
from pwm_core.runtime import seed_everything
from pwm_core.train import train as train_command
from pwm_core.training.agent import Agent
from pwm_core.training.evaluation import evaluate, quotas, standard_error
from pwm_core.training.replay_buffer import ReplayBuffer
from pwm_core.training.trainer import Trainer
from tests.helpers_envs import (
    CONFIG,
    DEFAULTS,
    LAST_REWARD,
    TINY,
    CountingEnv,
    Transition,
    counting_domain,
)
from tests.helpers_runs import rows_of

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("logdir")


@dataclass
class Run:
    """A training run that has ended."""

    config: Config
    trainer: Trainer
    env: CountingEnv
    replay: ReplayBuffer
    agent: Agent
    folder: RunFolder

    def records(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.folder.metrics.read_text().splitlines()]


def train(*overrides: str, lengths: Sequence[int] = (7,), seed: int = 0, **settings: Any) -> Run:
    """Train on as many counting environments as there are ``lengths``."""
    every = [*TINY, f"JointTrainAgent.NumEnvs={len(lengths)}", *overrides]
    config = load_config(CONFIG, defaults=DEFAULTS, overrides=every)
    domain, _ = counting_domain(lengths, **settings)
    rng = seed_everything(seed)
    env = domain.make_env(config, "count", len(lengths), seed)
    agent = cli.make_agent(domain, config, env, "cpu")
    folder = RunFolder("run")
    folder.begin(config, {})
    capacity = config.JointTrainAgent.BufferMaxLength
    replay = ReplayBuffer(domain.transition(config, env), len(lengths), capacity, CPU)
    tracker = Tracker(JsonLines(folder.metrics), folder.videos, [])
    trainer = Trainer(config, "count", env, agent, replay, tracker, folder, rng)
    trainer.run()
    tracker.close()
    return Run(config, trainer, env, replay, agent, folder)


def updates(run: Run, name: str) -> set[int]:
    """How many updates the parameters of an updater have seen."""
    states = run.agent.optimizers[name].adamw.state.values()
    return {int(state["step"]) for state in states}


def command(domain_and_made: tuple, name: str, *flags: str) -> None:
    """``train.py`` in this process."""
    overrides = [part for override in TINY for part in ("-set", override)]
    argv = ["-n", name, "-env_name", "count", "-config_path", CONFIG, "-device", "cpu"]
    train_command(domain_and_made[0], [*argv, "-logger", "none", *overrides, *flags])


def score(domain_and_made: tuple, name: str, *flags: str) -> list[list[float]]:
    """``eval.py`` in this process; the rows of the CSV as numbers."""
    return rows_of(evaluate_run(domain_and_made[0], ["-n", name, "-device", "cpu", *flags]))[1]


# -------------------------------------------------------------------------- what the replay holds


def stored(run: Run) -> list[list[Transition]]:
    """All of the replay, environment by environment, oldest first, as the trainer samples it."""
    count = run.env.num_envs
    batch = run.replay.sample(count, run.replay.size)
    columns = [value.numpy() for value in batch]
    by_env = {}
    for row in range(count):
        fields = zip(*(column[row] for column in columns), strict=True)
        by_env[int(columns[0][row, 0, 0, 0, 0])] = [Transition(*f, False) for f in fields]
    return [by_env[env] for env in range(count)]


@pytest.mark.parametrize("capacity", [60, 27])
@pytest.mark.parametrize("lengths", [(7,), (5, 6, 9)], ids=["one", "three"])
def test_replay_lines_up_with_what_happened(lengths: tuple[int, ...], capacity: int) -> None:
    """Observation, action, reward, done and is_first of each transition, the last one of every
    episode included, nothing in between; also when the ring has wrapped."""
    run = train(f"JointTrainAgent.BufferMaxLength={capacity}", lengths=lengths, life=2)
    assert run.replay.size == capacity // len(lengths)
    for truth, found in zip(run.env.log, stored(run), strict=True):
        assert len(truth) == 60 // len(lengths)
        for expected, transition in zip(truth[-len(found) :], found, strict=True):
            np.testing.assert_array_equal(transition.obs, expected.obs)
            assert transition[1:5] == expected[1:5]


def test_first_step_begins_an_episode_and_ends_are_kept() -> None:
    """The same, spelt out: is_first at the very first step, ``LAST_REWARD`` in the transition that
    ends an episode, done there in even episodes only, and is_first at the next one."""
    (found,) = stored(train(lengths=(7,)))
    steps = [int(t.obs[0, 0, 2]) for t in found]
    assert steps == [i % 7 for i in range(60)], "no dead transition at a reset"
    assert [bool(t.is_first) for t in found] == [i % 7 == 0 for i in range(60)]
    assert [bool(t.reward > LAST_REWARD) for t in found] == [i % 7 == 6 for i in range(60)]
    assert [bool(t.done) for t in found] == [i % 14 == 6 for i in range(60)]


# -------------------------------------------------------------------------------- the loop's books


@pytest.mark.parametrize("lengths", [(7,), (5, 6, 11)], ids=["one", "three"])
def test_logged_returns_are_those_of_whole_episodes(lengths: tuple[int, ...]) -> None:
    run = train("JointTrainAgent.LogEverySteps=1000", lengths=lengths)
    expected = {}
    for env, log in enumerate(run.env.log):
        ends = [i + 1 for i, t in enumerate(log) if t.finished]
        lists = zip(ends, run.env.returns(env), strict=True)
        expected |= {end * len(lengths): value for end, value in lists}
    assert len(expected) >= 6
    records = [r for r in run.records() if "Rollout/count_reward" in r]
    assert {r["step"]: r["Rollout/count_reward"] for r in records} == expected
    assert [r["Rollout/episodes"] for r in records] == list(range(1, len(expected) + 1))


def test_episodes_that_end_together_are_all_in_the_logged_return() -> None:
    run = train(lengths=(5, 5, 5))
    ended = zip(*(run.env.returns(env) for env in range(3)), strict=True)
    means = [np.mean(together) for together in ended]
    logged = [r["Rollout/count_reward"] for r in run.records() if "Rollout/count_reward" in r]
    assert logged == pytest.approx(means)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("every_agent", [1, 2, 3])
@pytest.mark.parametrize("every_model", [1, 2, 3])
def test_number_of_updates(every_model: int, every_agent: int, num_envs: int) -> None:
    """One update per ``Every`` steps after the warm-up, steps counted over all environments."""
    run = train(
        f"JointTrainAgent.TrainModelEverySteps={every_model}",
        f"JointTrainAgent.TrainAgentEverySteps={every_agent}",
        "JointTrainAgent.BufferWarmUp=25",
        "JointTrainAgent.SampleMaxSteps=40",
        lengths=(7,) * num_envs,
    )
    warm = -(-25 // num_envs) * num_envs
    total = -(-40 // num_envs) * num_envs
    assert run.env.random_steps == warm // num_envs
    assert (run.trainer.progress.step, len(run.env.log[0])) == (total, total // num_envs)
    for name, every in (("WorldModel", every_model), ("ActorCritic", every_agent)):
        assert updates(run, name) == {total // every - warm // every}


def test_agent_update_repeats_the_actor_critic_update() -> None:
    run = train("JointTrainAgent.AgentUpdate=3", "JointTrainAgent.SampleMaxSteps=30")
    assert [updates(run, name) for name in ("WorldModel", "ActorCritic")] == [{6}, {18}]


@pytest.mark.parametrize(("num_envs", "every"), [(1, 5), (3, 5), (3, 2)])
def test_metrics_file(num_envs: int, every: int) -> None:
    """One object per logged step, in order; averages wherever a multiple of LogEverySteps is
    reached or passed."""
    log_every = f"JointTrainAgent.LogEverySteps={every}"
    run = train(log_every, lengths=(7, 8, 9)[:num_envs])
    steps = [record["step"] for record in run.records()]
    assert steps == sorted(set(steps))
    reached = range(24 + num_envs, 61, num_envs)
    due = [s for s in reached if s // every > (s - num_envs) // every]
    logged = [r for r in run.records() if "WorldModel/recon_loss" in r]
    assert [r["step"] for r in logged] == due
    assert [r["frames"] for r in logged] == [2 * s for s in due]
    assert all(np.isfinite(list(record.values())).all() for record in run.records())
    names = {name for record in logged for name in record}
    assert {f"WorldModel/{n}" for n in ("reward_loss", "dyn_loss", "rep_loss", "vae_ent")} <= names
    assert {f"ActorCritic/{n}" for n in ("value_loss", "entropy", "scale", "norm_adv")} <= names


def test_metrics_are_means_over_the_updates_between_lines() -> None:
    """Logged at every step and at every fifth, the same run gives the same means."""
    fine = train("JointTrainAgent.LogEverySteps=1", "JointTrainAgent.BufferWarmUp=25").records()
    shutil.rmtree(find_logdir().runs)
    coarse = train("JointTrainAgent.LogEverySteps=5", "JointTrainAgent.BufferWarmUp=25").records()
    name = "WorldModel/recon_loss"
    values = [r[name] for r in fine if name in r]
    expected = np.array(values).reshape(-1, 5).mean(1)
    assert [r[name] for r in coarse if name in r] == pytest.approx(list(expected), rel=1e-5)


def test_updates_after_the_last_due_line_are_logged_at_the_end() -> None:
    name, warm_up = "WorldModel/recon_loss", "JointTrainAgent.BufferWarmUp=25"
    fine = [
        r[name] for r in train("JointTrainAgent.LogEverySteps=1", warm_up).records() if name in r
    ]
    shutil.rmtree(find_logdir().runs)
    records = train("JointTrainAgent.LogEverySteps=40", warm_up).records()
    logged = {r["step"]: r[name] for r in records if name in r}
    assert list(logged) == [40, 60]
    assert logged[60] == pytest.approx(np.mean(fine[15:]), rel=1e-5)


@pytest.mark.parametrize(
    ("num_envs", "every", "expected"),
    [
        (1, 20, [20, 40, 60]),
        (1, 25, [25, 50, 60]),
        (1, 1000, [60]),
        (3, 25, [27, 51, 60]),
        (3, 2, list(range(3, 61, 3))),
    ],
)
def test_checkpoints(num_envs: int, every: int, expected: list[int]) -> None:
    """Wherever a multiple of SaveEverySteps is reached or passed, and at the last step. The run can
    be extended from the last one only."""
    run = train(f"JointTrainAgent.SaveEverySteps={every}", lengths=(7,) * num_envs)
    assert run.folder.steps() == expected
    left = {p.name for p in run.folder.path.rglob("*") if p.suffix != ".pt"}
    point = {"resume", "replay", f"{expected[-1]:09d}.json"}
    assert left == {"checkpoints", "config.yaml", "run.json", "metrics.jsonl"} | point


@pytest.mark.parametrize("imagined", [1, 2, 3])
def test_videos_are_written_when_due(imagined: int) -> None:
    """However many sequences are imagined from."""
    run = train("JointTrainAgent.VideoLogStep=30", f"JointTrainAgent.ImagineBatchSize={imagined}")
    names = {path.name for path in run.folder.videos.iterdir()}
    kinds = ("observation", "reconstruction", "imagination", "comparison", "openloop")
    assert names == {f"{kind}_{step:09d}.mp4" for kind in kinds for step in (30, 60)}


# --------------------------------------------------------------------- weights, seeds, evaluation


def test_weights_saved_are_weights_loaded() -> None:
    run = train()
    weights = run.folder.load_weights(60, CPU)
    fresh = cli.make_agent(counting_domain((7,))[0], run.config, run.env, "cpu")
    before = {k: v.clone() for k, v in fresh.world_model.state_dict().items()}
    fresh.load_weights(weights)
    for module in ("world_model", "actor_critic"):
        trained = getattr(run.agent, module).state_dict()
        loaded = getattr(fresh, module).state_dict()
        assert trained.keys() == loaded.keys()
        assert all(torch.equal(trained[k], loaded[k]) for k in trained)
    after = fresh.world_model.state_dict()
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert any("running_mean" in k for k in changed), "BatchNorm statistics are among them"


def test_evaluation_of_a_checkpoint_repeats_and_is_that_of_the_trained_agent() -> None:
    domain = counting_domain((7, 11))
    command(domain, "run", "-seed", "3", "-set", "Models.Agent.LR=0.03")
    flags = ("-checkpoint", "all", "-episodes", "5")
    rows = score(domain, "run", *flags)
    assert [row[:2] for row in rows] == [[s, 2 * s] for s in (20, 40, 60)]
    shutil.rmtree(find_logdir().scores)
    assert score(domain, "run", *flags) == rows
    assert rows[0][4:] != rows[1][4:], "returns tell checkpoints apart"
    assert score(domain, "run", *flags, "-seed", "4")[0][4:] != rows[0][4:]

    for row, env in zip(rows, domain[1][1:4], strict=True):
        played = [*env.returns(0)[:3], *env.returns(1)[:2]]
        assert row[4:] == played
        assert row[2:4] == pytest.approx([np.mean(played), np.std(played)], rel=1e-5)


def test_greedy_evaluation_takes_the_mode() -> None:
    """With a checkpoint whose policy prefers action 2 a little, whatever it sees."""
    domain = counting_domain((7,))
    command(domain, "run")
    path = RunFolder.open("run").path / "checkpoints" / "000000060.pt"
    weights = torch.load(path, weights_only=True)
    last = max(k for k in weights["actor_critic"] if k.startswith("actor."))  # actor.<n>.weight
    weights["actor_critic"][last].zero_()
    weights["actor_critic"][last.replace("weight", "bias")].copy_(torch.tensor([0.0, 0.0, 0.5]))
    torch.save(weights, path)
    score(domain, "run", "-greedy")
    score(domain, "run")
    greedy, sampled = ({t.action for log in env.log for t in log} for env in domain[1][1:])
    assert greedy == {2}
    assert sampled == {0, 1, 2}


def test_evaluation_plays_a_fixed_quota_per_environment() -> None:
    """Short episodes are not favoured: environment 1 plays its share although environment 0 could
    finish sixteen episodes meanwhile."""
    config = load_config(CONFIG, defaults=DEFAULTS, overrides=TINY)
    domain, _ = counting_domain((3, 50))
    env = domain.make_env(config, "count", 2, 0)
    agent = cli.make_agent(domain, config, env, "cpu")
    returns = evaluate(agent, env, 5)
    assert returns == [*env.returns(0)[:3], *env.returns(1)[:2]]
    assert [value > 1000 for value in returns] == [False] * 3 + [True] * 2
    assert [len(log) for log in env.log] == [100, 100]


@pytest.mark.parametrize(
    ("episodes", "envs", "expected"),
    [(50, 20, [3] * 10 + [2] * 10), (50, 10, [5] * 10), (4, 4, [1] * 4), (7, 3, [3, 2, 2])],
)
def test_quotas(episodes: int, envs: int, expected: list[int]) -> None:
    assert quotas(episodes, envs).tolist() == expected


def test_standard_error() -> None:
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(np.sqrt(5 / 3) / 2)
    assert standard_error([3.0]) == 0


def test_every_environment_has_a_seed_of_its_own_and_evaluation_others_than_training() -> None:
    domain = counting_domain((7,))
    command(domain, "run", "-seed", "5")
    score(domain, "run")
    training, evaluating = (env.seed for env in domain[1])
    assert training == 5
    offset = evaluating - training
    seeds = np.concatenate([env_seeds(s + o, 20) for s in range(100) for o in (0, offset)])
    assert len(set(seeds.tolist())) == len(seeds)
    assert (seeds >= 0).all()
    assert (seeds < 2**31).all(), "what the emulator takes"
    assert env_seeds(5, 20)[:3].tolist() == env_seeds(5, 3).tolist()


def test_same_seed_same_metrics_another_seed_differs() -> None:
    domain = counting_domain((7, 9))
    texts = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        command(domain, name, "-seed", str(seed), "-set", "JointTrainAgent.NumEnvs=2")
        texts[name] = (find_logdir().runs / name / "metrics.jsonl").read_text()
    assert texts["a"] == texts["b"]
    assert texts["a"] != texts["c"]
    first, other = (json.loads(texts[name].splitlines()[-1]) for name in "ac")
    assert first["WorldModel/recon_loss"] != other["WorldModel/recon_loss"]


def test_run_folder_tells_what_the_run_stood_on() -> None:
    command(counting_domain((7,)), "run", "-seed", "5", "-set", "Models.Lambda=0.9")
    folder = RunFolder.open("run")
    about = folder.metadata()
    assert (about["seed"], about["task"], about["domain"]) == (5, "count", "counting")
    assert about["versions"]["torch"] == torch.__version__
    assert {"commit", "protocol", "hardware"} <= about.keys()
    assert folder.config(DEFAULTS).Models.Lambda == 0.9
    assert folder.config(DEFAULTS).BasicSettings.Seed == 5


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "score.csv"
    write_text(path, "old")
    with pytest.raises(IsADirectoryError), replacing(path) as temporary:
        (temporary.write_text("half"), tmp_path.write_text("fails"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_command_that_fails_early_leaves_no_run_in_the_way() -> None:
    """The corrected command may use the name."""
    domain = counting_domain((7,))
    too_much = [f"JointTrainAgent.BufferMaxLength={10**12}", "JointTrainAgent.BufferStorage=memory"]
    with pytest.raises(UserError, match="BufferMaxLength"):
        command(domain, "run", *(part for o in too_much for part in ("-set", o)))
    command(domain, "run")
