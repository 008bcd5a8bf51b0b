"""DeepMind Control environments in worker processes, their deaths, and saved episodes."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from pwm_core.envs import env_seeds
from pwm_core.errors import UserError
from tests.envs.dmc_reference import BENCHMARK_TASKS, PUBLISHED_TASKS, Reference
from tests.helpers_processes import (
    SLEEP,
    alive,
    all_leave,
    no_longer_than,
    run_script,
    start_script,
)

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
    """The seeds of the environments do not depend on how they are spread over processes."""
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
    """The other worker's episode continues.

    The lost episode is not a finished one, and the next one begins from the seed of its number.
    """
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
    assert "lower JointTrainAgent.NumEnvs" in str(raised.value)
    assert other.poll() == 0


def test_workers_that_die_together_and_a_replacement_that_dies_are_replaced(make, monkeypatch):
    """As when memory is short for a moment: none of the four places has died three times."""
    env = make("pendulum_swingup", 4, workers=4)
    env.reset()
    zeros, start, started = np.zeros((4, 1), np.float32), env._start_worker, []

    def start_worker():
        started.append(start())
        if len(started) == 1:
            started[0].process.kill()
        return started[-1]

    monkeypatch.setattr(env, "_start_worker", start_worker)
    for group in env._groups:
        group.process.kill()
    with no_longer_than(60):
        step = env.step(zeros)
    assert step.is_first.all()
    assert step.finished == []
    assert env.restarts == len(started) == 5
    assert not env.step(zeros).is_first.any()


@pytest.mark.parametrize("task", sorted({*BENCHMARK_TASKS, *PUBLISHED_TASKS}))
def test_a_saved_episode_continues_bit_for_bit(make, task):
    """The state after 12 steps of the second episode is restored in another environment."""
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


def test_saved_episodes_of_several_workers_continue_to_the_same_returns(make):
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
    assert parent.communicate(timeout=120) == ("", "")
    assert all_leave(pids)
