"""The examination of a trained agent, against numbers that are computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pwm_core.commands import examine as command
from pwm_core.commands.cli import eval_parser, examine_parser
from pwm_core.commands.trained_run import open_run
from pwm_core.errors import UserError
from pwm_core.models.types import Batch
from pwm_core.runs.recording import Recording, make_recording
from pwm_core.training import examination
from pwm_core.training.examination import REMAINDER, examine, observed_returns, window_starts
from tests.helpers import ACTIONS, load_small, make_actor_critic, make_agent, make_world_model
from tests.helpers_envs import counting_domain
from tests.helpers_runs import train_counting

GIVEN, HORIZON = 3, 4


def record(lengths: tuple[int, ...], *, done: bool = True) -> Recording:
    """Random steps of episodes of these lengths; the last one is cut off, and all without
    ``done``."""
    rng, count = np.random.default_rng(0), sum(lengths)
    begins = np.cumsum([0, *lengths[:-1]])
    ends = np.zeros(count, bool)
    ends[begins[1:] - 1] = done
    arrays = {
        "obs": rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8),
        "action": rng.integers(0, ACTIONS, count),
        "reward": rng.normal(size=count).astype(np.float32),
        "done": ends,
        "is_first": np.isin(np.arange(count), begins),
    }
    return make_recording(arrays, "test")


def test_sequences_lie_in_one_episode() -> None:
    is_first = np.isin(np.arange(25), (0, 10, 13))
    assert window_starts(is_first, 7, 2).tolist() == [0, 2, 13, 15, 17]
    is_first[0] = False  # a recording that begins within an episode
    assert window_starts(is_first, 10, 1).tolist() == [0, 13, 14, 15]
    assert not len(window_starts(is_first, 13, 1))


@pytest.mark.parametrize("done", [True, False])
def test_returns_are_those_of_the_rest_of_the_episode(done: bool) -> None:
    """They are not known near the end of an episode that was cut off."""
    lengths, discount = (6, 9, 8), 0.6
    recording = record(lengths, done=done)
    expected, begin = [], 0
    for number, length in enumerate(lengths):
        rewards = recording.reward[begin : begin + length].astype(float)
        for step in range(length):
            rest = rewards[step:]
            known = (done and number < 2) or discount ** len(rest) <= REMAINDER
            expected.append((rest * discount ** np.arange(len(rest))).sum() if known else np.nan)
        begin += length
    assert np.isnan(expected).any()
    np.testing.assert_allclose(observed_returns(recording, discount), expected, rtol=1e-6)


def test_errors_are_shares_of_the_error_of_predicting_no_change() -> None:
    """An agent that decodes every latent to one grey, and predicts no reward and no value."""
    config = load_small("Models.Gamma=0.5", "Models.GammaPerFrame=false")
    agent = make_agent(config)
    agent.world_model = make_world_model(config, fresh=True)
    agent.actor_critic = make_actor_critic(config, fresh=True)
    output = agent.world_model.decoder[-2]
    with torch.no_grad():
        output.weight.zero_()
        output.bias.zero_()  # the sigmoid after it makes 0.5 of it
    recording = record((12, 5, 17))
    found = examine(agent, recording, GIVEN, HORIZON, samples=2)
    starts = [0, 4, 17, 21, 25]
    assert found.sequences == len(starts)
    obs = recording.obs.astype(float) / 255
    for ahead in found.ahead:
        steps = np.array(starts) + GIVEN - 1 + ahead.steps
        still = ((obs[np.array(starts) + GIVEN - 1] - obs[steps]) ** 2).mean()
        grey = ((0.5 - obs[steps]) ** 2).mean()
        assert ahead.predicted == pytest.approx(grey / still, rel=1e-4)
        assert ahead.reconstructed == pytest.approx(grey / still, rel=1e-4)
        reward = recording.reward[steps]
        assert ahead.reward == pytest.approx(1 - (reward**2).mean() / reward.var(), rel=1e-4)
    assert [(span.first, span.last) for span in found.rewards] == [(1, 2), (3, 4)]
    for span in found.rewards:
        steps = np.array(starts)[:, None] + GIVEN - 1 + np.arange(span.first, span.last + 1)
        real = recording.reward[steps].mean(1)
        assert span.real.mean == pytest.approx(real.mean(), rel=1e-5)
        assert span.real.error == pytest.approx(real.std(ddof=1) / len(starts) ** 0.5, rel=1e-5)
        assert span.predicted.mean == pytest.approx(0, abs=1e-6)
        assert span.imagined.mean == pytest.approx(0, abs=1e-6)
    states = np.concatenate([np.arange(s + GIVEN, s + GIVEN + HORIZON) for s in starts])
    returns = observed_returns(recording, 0.5)[states]
    assert found.value is not None
    assert found.value.states == np.isfinite(returns).sum() < len(states)
    assert found.value.observed == pytest.approx(np.nanmean(returns), rel=1e-6)
    assert found.value.value == pytest.approx(0, abs=1e-6)
    assert found.value.correlation is None
    assert found.entropy == pytest.approx(np.log(ACTIONS), rel=1e-2)
    assert found.rewarded == 1


def test_a_perfect_prediction_is_as_good_as_a_reconstruction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Predicted steps are compared with the real steps of the same time."""
    agent = make_agent(load_small())
    monkeypatch.setattr(examination, "open_loop", lambda model, latent, rows, given: (latent, None))
    for ahead in examine(agent, record((12, 5, 17)), GIVEN, HORIZON, samples=1).ahead:
        assert ahead.predicted == pytest.approx(ahead.reconstructed, rel=1e-5)


def test_imagined_rewards_follow_from_the_last_real_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts start after every step of a sequence; those after the last one count."""
    agent = make_agent(load_small("JointTrainAgent.ImagineBatchSize=2"))
    recording = record((12, 5, 17))

    def imagine(batch: Batch) -> SimpleNamespace:
        assert len(batch.reward) <= 2
        starts = batch.reward[:, 1:].flatten()  # (N,)
        return SimpleNamespace(reward=starts[:, None] * torch.arange(1, HORIZON + 1))

    monkeypatch.setattr(agent, "imagine", imagine)
    found = examine(agent, recording, GIVEN, HORIZON, samples=2)
    last = recording.reward[np.array([0, 4, 17, 21, 25]) + GIVEN - 1]
    means = [span.imagined.mean for span in found.rewards]
    assert means == pytest.approx([last.mean() * 1.5, last.mean() * 3.5], rel=1e-4)


def test_episodes_that_are_too_short_are_refused() -> None:
    with pytest.raises(UserError, match="no episode of the 12 steps has 7 steps; take more steps"):
        examine(make_agent(load_small()), record((6, 6)), GIVEN, HORIZON, samples=1)


@pytest.mark.usefixtures("logdir")
def test_the_command_examines_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes is JSON, and what it prints has a line per distance."""
    train_counting("run")
    domain = counting_domain((7,))[0]
    monkeypatch.setattr(command, "find_domain", lambda name: domain)
    file = tmp_path / "found.json"
    argv = [
        "run",
        "-steps",
        "30",
        "-given",
        "2",
        "-samples",
        "2",
        "-device",
        "cpu",
        "-o",
        str(file),
    ]
    monkeypatch.setattr("sys.argv", ["examine", *argv])
    command.main()
    written = json.loads(file.read_text())
    assert written["step"] == 60
    assert [ahead["steps"] for ahead in written["examination"]["ahead"]] == [1, 2, 3]

    trained = open_run(domain, eval_parser(domain).parse_args(["-n", "run"]))
    found = command.run(domain, trained, examine_parser().parse_args(argv))
    assert found.examination.sequences == 4  # one in each episode that ended
    text = command.describe(found)
    assert "steps 1 to 2" in text
    assert "steps 3 to 3" in text
    monkeypatch.setattr("sys.argv", ["examine", "run", "-given", "1"])
    with pytest.raises(UserError, match="-given: at least 2"):
        command.main()
    monkeypatch.setattr("sys.argv", ["examine", "run", "-checkpoint", "all"])
    with pytest.raises(UserError, match="one at a time"):
        command.main()
