"""The DeepMind Control environments, against dm_control itself. For frames: test_dmc_rendering."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.envs import VectorEnv, env_seeds, episode_seed
from pwm_core.errors import UserError
from pwm_dmc import action_repeat, envs
from pwm_dmc.envs import DMCEnv
from tests.helpers_processes import (
    SLEEP,
    alive,
    all_leave,
    no_longer_than,
    run_script,
    start_script,
)

with pytest.MonkeyPatch.context() as _patch:
    _patch.setenv("MUJOCO_GL", "disabled")
    from dm_control import suite

# Those of the published results: two are not in suite.BENCHMARKING, one has another name there.
PUBLISHED_TASKS = (
    *("cartpole_balance", "cartpole_balance_sparse", "cartpole_swingup", "cup_catch"),
    *("finger_spin", "pendulum_swingup", "reacher_easy", "reacher_hard"),
    *("cartpole_swingup_sparse", "cheetah_run", "finger_turn_easy", "finger_turn_hard"),
    *("hopper_hop", "hopper_stand", "quadruped_run", "quadruped_walk"),
)
BENCHMARK_TASKS = tuple(f"{domain}_{task}" for domain, task in suite.BENCHMARKING)


class Reference:
    """dm_control stepped by hand: action repeat, sum of rewards, a reset when an episode ends."""

    def __init__(self, domain: str, task: str, seed: int, frame_skip: int) -> None:
        self.env = suite.load(domain, task, task_kwargs={"random": seed})
        self.frame_skip, self.seed, self.episode = frame_skip, seed, -1
        self.obs = self._flat(self._begin())

    def _begin(self):
        """Every episode from the seed of its number."""
        self.episode += 1
        self.env.task.random.seed(episode_seed(self.seed, self.episode))
        return self.env.reset()

    @staticmethod
    def _flat(timestep) -> np.ndarray:
        values = [np.ravel(value) for value in timestep.observation.values()]
        return np.concatenate(values).astype(np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        total, repeats = 0.0, 0
        timestep = None
        while repeats < self.frame_skip and not (timestep and timestep.last()):
            timestep = self.env.step(action)
            total += timestep.reward
            repeats += 1
        last = timestep.last()
        self.obs = self._flat(self._begin() if last else timestep)
        return self.obs, total, last


@pytest.fixture
def make() -> Iterator:
    """``DMCEnv`` with the usual arguments; closes what it made."""
    made: list[VectorEnv] = []

    def _make(task: str, num_envs: int = 1, seed: int = 0, **overrides) -> VectorEnv:
        arguments = {"obs_type": "proprio", "frame_skip": 2} | overrides
        made.append(DMCEnv(task, num_envs, seed, **arguments))
        return made[-1]

    yield _make
    for env in made:
        env.close()


@pytest.mark.parametrize("frame_skip", [2, 3])
@pytest.mark.parametrize(("domain", "task"), [("walker", "run"), ("reacher", "easy")])
def test_three_episodes_equal_dm_control(make, domain, task, frame_skip):
    """Observations in dm_control's order, summed rewards, repeats in every episode, no more than
    the episode has left (1000 is no multiple of 3), and a new start in the same step."""
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
    """Observations and rewards (steps + 1, N, D + 1) under fixed actions."""
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


CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("num_envs", "workers", "processes"),
    [
        (3, 2, 2),
        (2, 5, 2),
        pytest.param(3, None, min(3, CPUS), marks=pytest.mark.slow),
        pytest.param(3, 1, 1, marks=pytest.mark.slow),
        pytest.param(1, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_workers_give_what_single_environments_give(make, num_envs, workers, processes):
    """Each environment has its own seed, in order, however they are spread over processes."""
    env = make("reacher_easy", num_envs, seed=5, frame_skip=100, workers=workers)
    assert len({group.process.pid for group in env._groups}) == processes
    references = [Reference("reacher", "easy", int(s), 100) for s in env_seeds(5, num_envs)]
    np.testing.assert_array_equal(env.reset(), np.stack([r.obs for r in references]))
    assert len({r.obs.tobytes() for r in references}) == num_envs
    rng = np.random.default_rng(0)
    for t in range(1, 23):
        actions = env.random_actions(rng)
        env.send(actions)
        step = env.recv()
        expected = [r.step(a) for r, a in zip(references, actions, strict=True)]
        obs, reward, last = (np.array(column) for column in zip(*expected, strict=True))
        np.testing.assert_array_equal(step.obs, obs)
        np.testing.assert_array_equal(step.reward, reward.astype(np.float32))
        np.testing.assert_array_equal(step.is_first, last)
        assert [entry.env for entry in step.finished] == (list(range(num_envs)) * (t % 10 == 0))


def test_processes_are_as_many_as_cpus_and_gone_after_close(make):
    env = make("pendulum_swingup", 3)
    workers = [group.process for group in env._groups]
    assert len(workers) == min(3, CPUS)
    assert [worker.poll() for worker in workers] == [None] * len(workers)
    env.close()
    env.close()
    assert [worker.poll() for worker in workers] == [0] * len(workers)


def test_a_dead_worker_is_replaced_and_its_episodes_closed(make, caplog):
    """The other worker's episode goes on; the lost one is no finished episode, and its next one
    begins from the seed of its number."""
    env = make("pendulum_swingup", 2, seed=3, workers=2)
    env.reset()
    zeros = np.zeros((2, 1), np.float32)
    env.step(zeros)
    env._groups[1].process.kill()
    with no_longer_than(20):
        step = env.step(zeros)
    assert step.is_first.tolist() == [False, True]
    assert step.reward[1] == 0
    assert not step.done.any()
    assert step.finished == []
    assert env.restarts == 1
    assert "killed by SIGKILL; another takes its place" in caplog.text
    reference = Reference("pendulum", "swingup", int(env_seeds(3, 2)[1]), 2)
    reference.obs = reference._flat(reference._begin())
    np.testing.assert_array_equal(step.obs[1], reference.obs)
    finished = [entry for _ in range(500) for entry in env.step(zeros).finished]
    assert [(entry.env, entry.length) for entry in finished] == [(0, 500), (1, 500)]


def test_workers_that_keep_dying_are_an_error_and_no_hang(make):
    env = make("pendulum_swingup", 2, workers=2)
    env.reset()
    zeros = np.zeros((2, 1), np.float32)
    env.step(zeros)
    other = env._groups[0].process
    with no_longer_than(60):
        for _ in range(3):
            env._groups[1].process.kill()
            env.step(zeros)
        env._groups[1].process.kill()
        with pytest.raises(UserError, match="has died: killed by SIGKILL, and so did") as raised:
            env.step(zeros)
        env.close()
    assert "\n" not in str(raised.value)
    assert other.poll() == 0


@pytest.mark.parametrize("task", sorted({*BENCHMARK_TASKS, *PUBLISHED_TASKS}))
def test_a_saved_episode_goes_on_bit_for_bit(make, task):
    """For every task: state of the second episode after 12 steps, into another environment."""
    rng = np.random.default_rng(0)
    env = make(task, seed=11, frame_skip=5)
    env.reset()
    env.reset()
    for _ in range(12):
        seen = env.step(env.random_actions(rng)).obs
    state = env.state_dict()
    actions = [env.random_actions(rng) for _ in range(8)]
    expected = [env.step(action) for action in actions]
    again = make(task, seed=11, frame_skip=5)
    np.testing.assert_array_equal(again.load_state_dict(state), seen)
    for action, before in zip(actions, expected, strict=True):
        after = again.step(action)
        np.testing.assert_array_equal(after.obs, before.obs)
        np.testing.assert_array_equal(after.reward, before.reward)


def test_saved_episodes_of_several_workers_go_on_to_the_same_returns(make):
    rng = np.random.default_rng(0)
    env = make("reacher_easy", 3, seed=5, frame_skip=50, workers=2)
    env.reset()
    for _ in range(27):
        env.step(env.random_actions(rng))
    state = env.state_dict()
    actions = [env.random_actions(rng) for _ in range(40)]
    finished = [entry for action in actions for entry in env.step(action).finished]
    again = make("reacher_easy", 3, seed=5, frame_skip=50)
    again.load_state_dict(state)
    assert [entry for action in actions for entry in again.step(action).finished] == finished
    assert len(finished) == 6


@pytest.mark.parametrize("workers", [None, 1])
def test_recv_without_send_is_an_error_and_no_hang(make, workers):
    env = make("pendulum_swingup", workers=workers)
    first = env.reset()
    with no_longer_than(5), pytest.raises(RuntimeError, match="no send before"):
        env.recv()
    assert env.step(np.zeros((1, 1), np.float32)).obs.shape == first.shape


def test_an_exception_in_a_worker_is_raised_with_its_traceback(make):
    env = make("pendulum_swingup", 1, workers=1)
    env._groups[0].send("step", None)  # before the first reset, and no actions
    with pytest.raises(RuntimeError, match=r"Traceback[\s\S]*TypeError") as raised:
        env.recv()
    assert not isinstance(raised.value, UserError)


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


def test_importing_the_module_does_not_import_dm_control():
    run = run_script(
        "import sys, pwm_dmc.envs; print([m for m in sys.modules if 'mujoco' in m or "
        "'dm_control' in m or m == 'torch'])"
    )
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


MAKE = """
import os
from pwm_dmc.envs import DMCEnv
env = DMCEnv("cheetah_run", {num_envs}, 0, obs_type="proprio", frame_skip=2)
env.reset()
env.step(env.action_space.sample()[None].repeat({num_envs}, 0))
workers = env._groups if {num_envs} > 1 else []
print(os.environ.get("MUJOCO_GL"), *[worker.process.pid for worker in workers], flush=True)
"""


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize(
    "variables", [{"MUJOCO_GL": "broken"}, pytest.param({}, marks=pytest.mark.slow)]
)
def test_proprioception_needs_no_renderer_and_leaves_in_silence(num_envs, variables):
    run = run_script(MAKE.format(num_envs=num_envs), **variables)
    renderer, *pids = run.stdout.split()
    assert renderer == variables.get("MUJOCO_GL", "None")
    assert (run.stderr, run.returncode) == ("", 0)
    assert bool(pids) == (num_envs > 1)
    assert all_leave([int(pid) for pid in pids], seconds=0)


@pytest.mark.slow  # test_workers.py has the same of any worker
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_workers_leave_when_the_parent_is_killed_or_interrupted(signal_number):
    parent = start_script(MAKE.format(num_envs=2) + SLEEP)
    pids = [int(pid) for pid in parent.stdout.readline().split()[1:]]
    assert parent.stdout.readline() == "asleep\n"
    assert pids
    assert all(alive(pid) for pid in pids)
    if signal_number == signal.SIGINT:
        os.killpg(parent.pid, signal.SIGINT)
    else:
        parent.kill()
    assert parent.communicate(timeout=20) == ("", "")
    assert all_leave(pids)
