"""The DeepMind Control environments against dm_control itself.

Frames are tested in test_dmc_rendering.py, and worker processes in test_dmc_processes.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.envs import VectorEnv, env_seeds
from pwm_core.errors import UserError
from pwm_dmc import action_repeat, envs
from tests.envs.dmc_reference import BENCHMARK_TASKS, PUBLISHED_TASKS, Reference, suite


@pytest.mark.parametrize("frame_skip", [2, 3])
@pytest.mark.parametrize(("domain", "task"), [("walker", "run"), ("reacher", "easy")])
def test_three_episodes_equal_dm_control(make, domain, task, frame_skip):
    """Observations, summed rewards and ends of three episodes are those of dm_control.

    The last action of an episode is repeated no more often than the episode has steps left (1000 is
    no multiple of 3), and the next episode begins in the same step.
    """
    env = make(f"{domain}_{task}", seed=7, frame_skip=frame_skip)
    reference = Reference(domain, task, int(env_seeds(7, 1)[0]), frame_skip)
    np.testing.assert_array_equal(env.reset()[0], reference.obs)
    rng = np.random.default_rng(0)
    episodes = 0
    for _ in range(2 * -(-1000 // frame_skip) + 10):
        action = env.random_actions(rng)
        step = env.step(action)
        obs, reward, last = reference.step(action[0])
        np.testing.assert_array_equal(step.obs[0], obs)
        assert step.reward[0] == np.float32(reward)
        assert step.is_first[0] == last
        episodes += last
    assert episodes == 2
    assert step.obs.dtype == env.observation_space.dtype == np.float32
    assert step.obs.shape[1:] == env.observation_space.shape
    assert step.reward.dtype == np.float32
    assert step.done.dtype == step.is_first.dtype == bool


def test_an_episode_has_500_transitions_none_terminal(make):
    env = make("cartpole_balance")
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(2):
        rewards = []
        for t in range(500):
            step = env.step(env.random_actions(rng))
            rewards.append(step.reward[0])
            assert not step.done[0]
            assert step.is_first[0] == (t == 499)
            assert len(step.finished) == (t == 499)
        assert rewards[-1] > 0  # nothing dead at the end
        assert step.finished[0].env == 0
        assert step.finished[0].length == 500
        assert step.finished[0].episode_return == pytest.approx(np.sum(rewards, dtype=np.float64))


def test_reset_forgets_the_episode_it_breaks_off(make):
    env = make("cartpole_balance", frame_skip=100)
    env.reset()
    for _ in range(4):
        env.step(np.zeros((1, 1), np.float32))
    env.reset()
    finished = [env.step(np.zeros((1, 1), np.float32)).finished for _ in range(10)]
    assert [len(entry) for entry in finished] == [0] * 9 + [1]
    assert finished[-1][0].length == 10


@pytest.mark.parametrize("task", sorted({*BENCHMARK_TASKS, *PUBLISHED_TASKS}))
def test_every_task_constructs_and_steps(make, task):
    env = make(task)
    obs = env.reset()
    assert obs.shape == (1, *env.observation_space.shape)
    assert env.frame_skip == 2
    rng = np.random.default_rng(0)
    for _ in range(3):
        step = env.step(env.random_actions(rng))
        assert np.isfinite(step.obs).all()
        assert np.isfinite(step.reward).all()
        assert step.obs.shape == obs.shape


def test_there_are_28_benchmark_tasks():
    assert len(BENCHMARK_TASKS) == 28
    assert len(set(PUBLISHED_TASKS)) == 16


def test_the_action_space_has_the_true_bounds(make):
    spec = suite.load("quadruped", "walk").action_spec()
    env = make("quadruped_walk")
    np.testing.assert_array_equal(env.action_space.low, spec.minimum.astype(np.float32))
    np.testing.assert_array_equal(env.action_space.high, spec.maximum.astype(np.float32))
    assert env.action_space.dtype == np.float32
    assert env.action_space.high.max() > 1  # not the -1 to 1 of most tasks


def test_actions_are_clipped_to_the_bounds(make):
    env = make("quadruped_walk")
    env.reset()
    physics = env._groups[0].target._envs[0]._env.physics
    for value, bound in ((5, env.action_space.high), (-5, env.action_space.low)):
        env.step(np.full((1, 12), value, np.float32))
        np.testing.assert_array_equal(physics.control(), bound)


@pytest.mark.parametrize("action", [np.nan, np.inf])
def test_an_action_that_is_no_number_is_refused(make, action):
    env = make("cartpole_balance")
    env.reset()
    with pytest.raises(ValueError, match="NaN or infinity"):
        env.step(np.full((1, 1), action, np.float32))


def test_an_action_of_the_wrong_shape_is_refused(make):
    env = make("cartpole_balance")
    env.reset()
    with pytest.raises(ValueError, match=r"\(1, 2\), not \(1, 1\)"):
        env.step(np.zeros((1, 2), np.float32))


def rollout(env: VectorEnv, steps: int) -> np.ndarray:
    """Observations and rewards (steps + 1, N, O + 1) under fixed actions."""
    rng = np.random.default_rng(0)
    obs = env.reset()
    rows = [np.concatenate([obs, np.zeros((env.num_envs, 1))], 1)]
    for _ in range(steps):
        step = env.step(env.random_actions(rng))
        rows.append(np.concatenate([step.obs, step.reward[:, None]], 1))
    return np.stack(rows)


def test_the_same_seed_repeats_and_another_differs(make):
    first = rollout(make("reacher_easy", seed=3, frame_skip=100), 25)
    again = rollout(make("reacher_easy", seed=3, frame_skip=100), 25)
    other = rollout(make("reacher_easy", seed=4, frame_skip=100), 25)
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first[0], other[0]).all()


def test_episodes_of_one_environment_differ(make):
    env = make("reacher_easy", frame_skip=500)
    starts = [env.reset(), env.reset()]  # by reset, then by reaching the end
    for _ in range(4):
        step = env.step(np.zeros((1, 2), np.float32))
        if step.is_first[0]:
            starts.append(step.obs)
    assert len({start.tobytes() for start in starts}) == len(starts) == 4


def test_a_simulation_that_diverges_begins_the_next_episode(make, caplog):
    env = make("hopper_hop")
    env.reset()
    env.step(np.zeros((1, 4), np.float32))
    env._groups[0].target._envs[0]._env.physics.data.qvel[:] = 1e20
    step = env.step(np.zeros((1, 4), np.float32))
    assert step.is_first[0]
    assert not step.done[0]
    assert step.finished[0].length == 2
    assert np.isfinite(step.obs).all()
    assert np.isfinite(step.reward).all()
    assert "hopper_hop: the simulation diverged" in caplog.text
    assert not env.step(np.zeros((1, 4), np.float32)).is_first[0]


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ("walker_wlak", "did you mean 'walker_walk'"),
        ("cup_cach", "'cup_catch'"),
        ("Pong", "a name is domain_task, such as walker_walk"),
        ("lqr_lqr_2_1", "no time limit"),
    ],
)
def test_an_unknown_task_is_one_clear_line(make, task, hint, num_envs):
    with pytest.raises(UserError) as raised:
        make(task, num_envs)
    message = str(raised.value)
    assert task in message
    assert hint in message
    assert "\n" not in message


def test_a_wrong_observation_type_is_one_clear_line(make):
    with pytest.raises(UserError) as raised:
        make("walker_walk", obs_type="visul")
    assert "'visul'" in str(raised.value)
    assert "did you mean 'visual'" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("wrong", [{"num_envs": 0}, {"frame_skip": 0}, {"workers": 0}])
def test_numbers_must_be_positive(make, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make("walker_walk", **wrong)


def dmc_config(**basic: object) -> Config:
    overrides = [f"BasicSettings.{key}={value}" for key, value in basic.items()]
    return load_config("config_files/dmc.yaml", overrides=overrides)


def test_make_env_follows_the_config():
    env = envs.make_env(dmc_config(FrameSkip=4), "walker_walk", 1, 3)
    assert env.frame_skip == 4
    np.testing.assert_array_equal(
        env.reset()[0], Reference("walker", "walk", int(env_seeds(3, 1)[0]), 4).obs
    )
    assert envs.describe_protocol(dmc_config()) == {
        "name": "suite",
        "obs_type": "proprio",
    }


@pytest.mark.parametrize(
    ("task", "repeat"),
    [
        ("cartpole_swingup_sparse", 8),
        ("cup_catch", 4),
        ("ball_in_cup_catch", 4),
        ("finger_spin", 2),
        ("pendulum_swingup", 4),
    ],
)
def test_a_frame_skip_by_task_becomes_a_number(task, repeat):
    resolved = action_repeat.resolve(dmc_config(FrameSkip="task"), task)
    assert resolved == dmc_config(FrameSkip=repeat)
    assert action_repeat.resolve(dmc_config(FrameSkip=3), task) == dmc_config(FrameSkip=3)


def test_every_domain_of_the_action_repeats_exists():
    names = [envs.find_task(task) for task in ("cup_catch", "walker_walk")]
    assert [domain for domain, _ in names] == ["ball_in_cup", "walker"]
    domains = {domain for domain, _ in envs._simulation().suite.ALL_TASKS}
    assert set(action_repeat.ACTION_REPEATS) - {"cup"} <= domains


@pytest.mark.parametrize(
    ("basic", "task", "message"),
    [
        ({}, "walker_wlak", "did you mean 'walker_walk'"),
        ({"Protocol": "pamorl"}, "walker_walk", "BasicSettings.Protocol = 'pamorl'"),
        ({"ObsType": "visual", "ObsShape": [64, 32, 3]}, "walker_walk", "BasicSettings.ObsShape"),
        ({"ObsType": "visual", "ObsShape": [64, 64, 1]}, "walker_walk", "BasicSettings.ObsShape"),
    ],
)
def test_check_task_refuses_in_one_line(basic, task, message):
    envs.check_task(dmc_config(), "cup_catch")
    with pytest.raises(UserError) as raised:
        envs.check_task(dmc_config(**basic), task)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_check_obs_type():
    for valid in (None, "proprio", "visual"):
        envs.check_obs_type(valid)
    with pytest.raises(UserError, match="must be proprio or visual"):
        envs.check_obs_type("pixels")
