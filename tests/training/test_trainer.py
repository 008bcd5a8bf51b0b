"""The real training loop and evaluation around an environment that counts."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pwm_core.commands import cli
from pwm_core.errors import UserError
from pwm_core.paths import find_logdir
from pwm_core.runs.files import replacing, write_text
from pwm_core.runs.run_folder import RunFolder
from pwm_core.training import agent
from tests.helpers_counting import Run, train
from tests.helpers_envs import (
    DEFAULTS,
    LAST_REWARD,
    Transition,
    counting_domain,
)
from tests.helpers_runs import train_on

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("logdir")


def updates(run: Run, name: str) -> set[int]:
    """How many updates the parameters of an updater have seen."""
    states = run.agent.optimizers[name].adamw.state.values()
    return {int(state["step"]) for state in states}


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
    """The replay holds every transition of every episode and nothing else, also after a wrap."""
    run = train(f"JointTrainAgent.BufferMaxLength={capacity}", lengths=lengths, life=2)
    assert run.replay.size == capacity // len(lengths)
    for truth, found in zip(run.env.log, stored(run), strict=True):
        assert len(truth) == 60 // len(lengths)
        for expected, transition in zip(truth[-len(found) :], found, strict=True):
            np.testing.assert_array_equal(transition.obs, expected.obs)
            assert transition[1:5] == expected[1:5]


def test_first_step_begins_an_episode_and_ends_are_kept() -> None:
    """The flags of every transition in the replay, written out.

    The first step is ``is_first``. The last transition of an episode has ``LAST_REWARD``, and in
    even episodes it is ``done``. The next one is ``is_first`` again.
    """
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
    """There is one update per ``Every`` steps after the warm-up, summed over all environments."""
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
    """There is one object per logged step, in order.

    Metrics are logged wherever a multiple of ``LogEverySteps`` is reached or passed.
    """
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


@pytest.mark.parametrize("agent_every", [1, 2])
def test_metrics_are_means_over_the_updates_between_lines(agent_every: int) -> None:
    """A run that logs every fifth step logs the means of the same run that logs every step, also
    where some updates are of the world model alone."""
    same = [
        "JointTrainAgent.BufferWarmUp=25",
        f"JointTrainAgent.TrainAgentEverySteps={agent_every}",
    ]
    fine = train("JointTrainAgent.LogEverySteps=1", *same).records()
    shutil.rmtree(find_logdir().runs)
    coarse = train("JointTrainAgent.LogEverySteps=5", *same).records()
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


@pytest.mark.slow
def test_compiling_is_told_and_not_part_of_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bar begins after the first update of each kind. torch traces, and runs what it traced."""
    traced = partial(torch.compile, backend="eager", dynamic=False)
    monkeypatch.setattr(agent, "_compiler", lambda device: traced)
    every = "JointTrainAgent={TrainModelEverySteps: 3, TrainAgentEverySteps: 2}"
    domain, settings = counting_domain((7,))[0], ["-set", every]
    texts = []
    for name, mode, initial, notes in (("a", "off", 24, 0), ("b", "compile", 27, 1)):
        train_on(domain, name, *settings, "-set", f"BasicSettings.Compile={mode}")
        texts.append((find_logdir().runs / name / "metrics.jsonl").read_text())
        said = capsys.readouterr()
        assert re.search(r"training:.*?(\d+)/60", said.err)[1] == str(initial)
        assert said.out.count("compiling the training step") == notes
        assert len(re.findall(r"^compiled in \d+ s$", said.out, re.MULTILINE)) == notes
    assert texts[0] == texts[1]


@pytest.mark.parametrize("imagined", [1, 2, 3])
def test_videos_are_written_when_due(imagined: int) -> None:
    """The number of sequences that imagination starts from does not matter."""
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


def test_same_seed_same_metrics_another_seed_differs() -> None:
    domain = counting_domain((7, 9))
    texts = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_on(domain[0], name, "-seed", str(seed), "-set", "JointTrainAgent.NumEnvs=2")
        texts[name] = (find_logdir().runs / name / "metrics.jsonl").read_text()
    assert texts["a"] == texts["b"]
    assert texts["a"] != texts["c"]
    first, other = (json.loads(texts[name].splitlines()[-1]) for name in "ac")
    assert first["WorldModel/recon_loss"] != other["WorldModel/recon_loss"]


def test_run_folder_tells_what_the_run_stood_on() -> None:
    train_on(counting_domain((7,))[0], "run", "-seed", "5", "-set", "Models.Lambda=0.9")
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
        train_on(domain[0], "run", *(part for o in too_much for part in ("-set", o)))
    train_on(domain[0], "run")
