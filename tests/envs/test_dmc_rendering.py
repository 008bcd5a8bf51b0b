"""The frames of the DeepMind Control environments against those of dm_control itself.

All rendering runs in separate processes, because dm_control chooses a renderer once per process.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from pwm_core.config_file import load_config
from pwm_core.envs import env_seeds, episode_seed
from pwm_core.errors import UserError
from pwm_dmc.envs import DMCEnv, make_env
from pwm_dmc.rendering import try_renderer
from tests.helpers_processes import all_leave, run_script


@functools.cache
def works(renderer: str) -> bool:
    return not try_renderer(renderer)


def need(renderer: str | None = None) -> str:
    """Skip the test unless ``renderer`` (or, by default, any) works here; returns its name."""
    names = ("egl", "osmesa") if renderer is None else (renderer,)
    for name in names:
        if works(name):
            return name
    pytest.skip(f"no renderer on this machine: {' or '.join(names)}")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes the contexts that a test enters into it."""
    with ExitStack() as entered:
        yield entered


# Frames of dm_control itself: of each task the first, then one after each of the actions.
REFERENCE_FRAMES = """
import sys
import numpy as np
from dm_control import suite
first, second, folder, *tasks = sys.argv[1:]
for name, domain, task, camera, frame_skip in (task.split(":") for task in tasks):
    env = suite.load(domain, task, task_kwargs={"random": int(first)})
    env.reset()
    frames = [env.physics.render(64, 64, camera_id=int(camera))]
    for action in np.load(f"{folder}/{name}_actions.npy"):
        for _ in range(int(frame_skip)):
            if env.step(action).last():
                env.task.random.seed(int(second))
                env.reset()
                break
        frames.append(env.physics.render(64, 64, camera_id=int(camera)))
    np.save(f"{folder}/{name}_frames.npy", frames)
    env.physics.free()
"""


@pytest.mark.slow
def test_frames_equal_dm_controls_own(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack, tmp_path: Path
) -> None:
    """Frames agree during an episode, at the start of the next, and with the domain's camera."""
    monkeypatch.setenv("MUJOCO_GL", need())
    tasks = {
        "walker_walk": "walker:walk:0:200",  # the episode ends at the fifth step
        "quadruped_walk": "quadruped:walk:2:20",
        "cup_catch": "ball_in_cup:catch:0:20",
    }
    drawn: dict[str, list[np.ndarray]] = {}
    for name, parts in tasks.items():
        frame_skip = int(parts.rpartition(":")[2])
        env = DMCEnv(name, 1, 0, obs_type="visual", frame_skip=frame_skip)
        stack.callback(env.close)
        assert env.observation_space.shape == (64, 64, 3)
        assert env.observation_space.dtype == np.uint8
        actions = [env.random_actions(np.random.default_rng(t)) for t in range(7)]
        frames = drawn[name] = [env.reset()[0]]
        for t, action in enumerate(actions, 1):
            step = env.step(action)
            assert step.is_first[0] == (t * frame_skip == 1000)
            frames.append(step.obs[0])
        np.save(tmp_path / f"{name}_actions.npy", np.concatenate(actions))
    first = int(env_seeds(0, 1)[0])
    seeds = [str(first), str(episode_seed(first, 1))]
    arguments = [*seeds, str(tmp_path), *map(":".join, tasks.items())]
    subprocess.run([sys.executable, "-c", REFERENCE_FRAMES, *arguments], check=True, timeout=120)
    for name, frames in drawn.items():
        expected = np.load(tmp_path / f"{name}_frames.npy")
        assert frames[0].dtype == expected.dtype == np.uint8
        np.testing.assert_array_equal(np.stack(frames), expected, err_msg=name)
        assert len({frame.tobytes() for frame in frames}) == len(frames), name


def test_frames_of_the_configs_size_beside_proprioception_in_one_process(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    monkeypatch.setenv("MUJOCO_GL", need())
    sizes = ["BasicSettings.ObsType=visual", "BasicSettings.ObsShape=[32, 32, 3]"]
    config = load_config("config_files/dmc.yaml", overrides=sizes)
    proprio = DMCEnv("pendulum_swingup", 1, 0, obs_type="proprio", frame_skip=2)
    visual = make_env(config, "pendulum_swingup", 2, 0)
    stack.callback(visual.close)
    assert proprio.reset().shape == (1, 3)
    assert visual.observation_space.shape == (32, 32, 3)
    assert visual.reset().shape == (2, 32, 32, 3)
    assert os.environ["MUJOCO_GL"] == need()


FIND_RENDERER = """
from pwm_core.errors import UserError
from pwm_dmc.rendering import working_renderer
try:
    print(working_renderer())
except UserError as error:
    print("UserError", error)
"""


def broken_libraries(folder: Path) -> dict[str, str]:
    """Environment variables under which neither EGL nor OSMesa works."""
    for name in ("libOSMesa.so", "libOSMesa.so.8", "libOSMesa.so.6"):
        (folder / name).write_bytes(b"")
    return {"LD_LIBRARY_PATH": str(folder), "MUJOCO_EGL_DEVICE_ID": "99"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ("egl: ", "osmesa: ", "libegl1", "libosmesa6", "no headless renderer works")),
        ({"MUJOCO_GL": "osmesa"}, ("MUJOCO_GL cannot render", "osmesa: ", "libosmesa6")),
        ({"MUJOCO_GL": "egl"}, ("MUJOCO_GL cannot render", "egl: ", "libegl1")),
        ({"MUJOCO_GL": "nonsense"}, ("MUJOCO_GL cannot render", "nonsense: ", "unset it")),
        ({"MUJOCO_GL": "disabled"}, ("MUJOCO_GL cannot render", "disabled: ", "unset it")),
    ],
)
def test_no_renderer_is_one_clear_line(
    tmp_path: Path, variables: dict[str, str], expected: tuple[str, ...]
) -> None:
    run = run_script(FIND_RENDERER, **broken_libraries(tmp_path), **variables)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("UserError ")
    assert run.stdout.count("\n") == 1
    assert all(part in run.stdout for part in expected), run.stdout


def test_visual_environments_need_a_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(UserError, match=r"MUJOCO_GL cannot render .* or use -obs_type proprio"):
        DMCEnv("walker_walk", 1, 0, obs_type="visual", frame_skip=2)


def test_osmesa_is_taken_where_egl_does_not_work() -> None:
    need("osmesa")
    variables = {"MUJOCO_EGL_DEVICE_ID": "99", "PYOPENGL_PLATFORM": "egl"}  # the latter is ignored
    assert run_script(FIND_RENDERER, **variables).stdout.strip() == "osmesa"


TWO_ENVIRONMENTS = """
from pwm_dmc.envs import DMCEnv
env = DMCEnv("cheetah_run", 2, 0, obs_type="visual", frame_skip=2, workers=1)
env.reset()
env.step(env.action_space.sample()[None].repeat(2, 0))
print(*[group.process.pid for group in env._groups])
"""
LEAVE = {
    "not closed": "",
    "closed": "env.close()",
    "an exception": "raise SystemExit(3)",
    "held by a global": "import builtins; builtins.kept = env",
}


@pytest.mark.parametrize(
    ("renderer", "how"),
    [
        ("egl", "an exception"),
        ("osmesa", "not closed"),
        pytest.param("egl", "not closed", marks=pytest.mark.slow),
        pytest.param("osmesa", "closed", marks=pytest.mark.slow),
        pytest.param("osmesa", "held by a global", marks=pytest.mark.slow),
    ],
)
def test_a_visual_process_leaves_in_silence(renderer: str, how: str) -> None:
    need(renderer)
    run = run_script(TWO_ENVIRONMENTS + LEAVE[how], MUJOCO_GL=renderer)
    assert (run.returncode, run.stderr) == (3 if how == "an exception" else 0, "")
    pids = [int(pid) for pid in run.stdout.split()]
    assert pids
    assert all_leave(pids, seconds=0)
