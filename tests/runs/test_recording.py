"""Recorded trajectories: safe to read, checked, and as the agent's own replay."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pwm_core.commands import convert_recording
from pwm_core.commands.cli import record_parser, train_parser
from pwm_core.commands.convert_recording import read_pickle
from pwm_core.commands.quickstart import _fill_in
from pwm_core.commands.record import play, run
from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.errors import UserError
from pwm_core.runs.recording import Recording, make_recording, read_recording, write_recording
from pwm_core.runtime import use_tensor_float
from pwm_core.training.demonstration import load_demonstration
from pwm_core.training.evaluation import RandomAgent
from tests.helpers_envs import DEFAULTS, TINY, CountingEnv, counting_domain
from tests.helpers_runs import (
    CONFIG,
    CrashError,
    assert_same_run,
    crash_at,
    flags,
    folder,
    records,
    train_counting,
)

CPU = torch.device("cpu")


def arrays(steps: int = 30) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "obs": rng.integers(0, 256, (steps, 8, 8, 3)).astype(np.uint8),
        "action": rng.integers(0, 3, steps),
        "reward": rng.normal(size=steps).astype(np.float32),
        "done": np.arange(steps) % 7 == 6,
    }


def small_config(*overrides: str) -> Config:
    return load_config(CONFIG, defaults=DEFAULTS, overrides=[*TINY, *overrides])


# ------------------------------------------------------------------------------------- the files


def test_a_recording_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    written = make_recording(arrays(), "here", {"task": "count"})
    write_recording(path, written)
    found = read_recording(path)
    for name, array in written.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array)
        assert found.arrays()[name].dtype == array.dtype
    assert found.about == {"task": "count"}
    with np.load(path, allow_pickle=False) as archive:
        assert set(archive.files) == {"obs", "action", "reward", "done", "is_first", "about"}


def test_episodes_begin_at_the_first_step_and_after_an_end() -> None:
    found = make_recording(arrays(20), "here")
    assert np.flatnonzero(found.is_first).tolist() == [0, 7, 14]


BAD: dict[str, dict[str, Any]] = {
    "no array reward": {"reward": None},
    "action has the shape (29,)": {"action": np.zeros(29, int)},
    "done holds other values": {"done": np.full(30, 2)},
    "reward holds values that are not finite": {"reward": np.full(30, np.nan)},
    "obs has the shape () and the dtype object": {"obs": np.array({})},
}


@pytest.mark.parametrize("says", BAD)
def test_arrays_that_do_not_fit_are_refused(says: str) -> None:
    with pytest.raises(UserError) as caught:
        make_recording(arrays() | BAD[says], "mine.npz")
    assert says in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "text", "pickle", "npy", "objects", "damaged"])
def test_what_is_no_archive_of_arrays_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    if kind == "text":
        path.write_text("nothing")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(arrays()))
    elif kind == "npy":
        np.save(path.open("wb"), np.zeros(3))
    elif kind == "objects":
        np.savez(path.open("wb"), obs=np.array([{}], dtype=object))
    elif kind == "damaged":  # where the first array's compressed bytes begin
        write_recording(path, make_recording(arrays(), "here"))
        content = path.read_bytes()
        path.write_bytes(content[:50] + bytes([255] * 50) + content[100:])
    with pytest.raises(UserError) as caught:
        read_recording(path)
    assert "\n" not in str(caught.value)
    assert kind == "missing" or "convert_recording" in str(caught.value)


# --------------------------------------------------------------------------------- old pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["arrays", "lists", "fortran", "big endian"])
def test_an_old_pickle_is_converted(
    kind: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old.pkl", tmp_path / "new.npz"
    content: dict[str, Any] = arrays()
    if kind == "lists":
        content |= {"obs": list(content["obs"]), "reward": list(content["reward"])}
        content["done"] = content["done"].tolist()
    if kind == "fortran":
        content["obs"] = np.asfortranarray(content["obs"])
    if kind == "big endian":
        content["reward"] = content["reward"].astype(">f8")
    old.write_bytes(pickle.dumps(content, protocol=protocol))
    monkeypatch.setattr("sys.argv", ["convert", str(old), str(new)])
    convert_recording.main()
    expected = make_recording(arrays(), "here").arrays()
    for name, array in read_recording(new).arrays().items():
        np.testing.assert_array_equal(array, expected[name])
    with pytest.raises(UserError, match="exists already"):
        convert_recording.main()


def test_a_pickle_of_numpy_1_is_read(tmp_path: Path) -> None:
    """It keeps the functions in another package."""
    path = tmp_path / "old.pkl"
    text = pickle.dumps(arrays(), protocol=2)
    assert b"numpy._core.multiarray" in text
    path.write_bytes(text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(read_pickle(path)["obs"], arrays()["obs"])


class Evil:
    """Would call a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def evil_pickles(mark: Path) -> dict[str, bytes]:
    """Pickles that write ``mark`` or call something else, each in another way."""
    text = f"open({str(mark)!r}, 'w')"
    calls = {
        "system": Evil(os.system, f"touch {mark}"),
        "eval": Evil(eval, text),
        "in a dictionary": {"obs": Evil(exec, text)},
        "load": Evil(np.load, str(mark)),
        "array of objects": {"obs": np.array([Evil(exec, text)], dtype=object)},
        "dtype of objects": Evil(np.dtype, "O"),
        "getattr": Evil(getattr, "text", "upper"),
        "encode": Evil(__import__("_codecs").encode, "abc", "rot13"),
        "a class": Evil(Recording, *[0] * 5),
    }
    found = {
        f"{name}, protocol {protocol}": pickle.dumps(call, protocol=protocol)
        for name, call in calls.items()
        for protocol in (0, 4)
    }
    found["dotted name"] = b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.view\x93."
    found["persistent"] = b"Pmine\n."
    found["short array"] = pickle.dumps({"a": np.zeros(9)}, protocol=4).replace(b"\x00" * 8, b"", 1)
    found["cut off"] = pickle.dumps(arrays())[:500]
    found["not a pickle"] = b"\x00\x01\x02"
    return found


@pytest.mark.parametrize("name", evil_pickles(Path("mark")))
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(name: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "old.pkl", tmp_path / "mark"
    path.write_bytes(evil_pickles(mark)[name])
    with pytest.raises(UserError) as caught:
        read_pickle(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


# ------------------------------------------------------------------------------------- recording


def test_the_steps_are_those_of_the_environment() -> None:
    env = CountingEnv((7,), life=2)
    recording = play(RandomAgent(env, 0), env, 25, {})
    (log,) = env.log
    for step, truth in enumerate(log):
        np.testing.assert_array_equal(recording.obs[step], truth.obs)
        assert recording.action[step] == truth.action
        assert recording.reward[step] == np.float32(truth.reward)
        assert (recording.done[step], recording.is_first[step]) == (truth.done, truth.is_first)
    assert recording.about["returns"] == env.returns(0)
    assert not np.array_equal(  # one that is cut off begins anew without an end before it
        recording.is_first, make_recording(recording.arrays() | {"is_first": None}, "").is_first
    )


def record(path: Path, *argv: str) -> Recording:
    """``record.py`` in this process, on a counting environment."""
    domain = counting_domain((7,), life=2)[0]
    given = ["-o", str(path), "-steps", "40", "-device", "cpu", "-config_path", CONFIG]
    run(domain, record_parser(domain).parse_args([*given, *argv]))
    return read_recording(path)


@pytest.mark.usefixtures("logdir")
def test_a_run_and_random_play_are_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_counting("run", overrides=["Models.Agent.LR=0.1"])
    random = record(tmp_path / "random.npz", "-env_name", "count", *flags(*TINY))
    trained = record(tmp_path / "trained.npz", "-n", "run")
    assert f"note: the Models of {CONFIG} differ" in capsys.readouterr().out
    assert random.obs.shape == trained.obs.shape == (40, 8, 8, 3)
    assert random.about["agent"] == "random play"
    assert trained.about["agent"] == "run, step 60"
    assert not np.array_equal(random.action, trained.action)
    earlier = record(tmp_path / "earlier.npz", "-n", "run", "-checkpoint", "20")
    assert earlier.about["agent"] == "run, step 20"
    with pytest.raises(UserError, match=r"other settings: Models.Hidden was \d+ and is 64; leave"):
        record(tmp_path / "other.npz", "-n", "run", *flags("Models.Hidden=64"))
    path = folder("run") / "config.yaml"
    path.write_text(re.sub("Hidden: .*", "Hidden: 64", path.read_text()))
    with pytest.raises(UserError, match=r"000000060.pt does not fit the run's config.yaml"):
        record(tmp_path / "other.npz", "-n", "run")


@pytest.mark.usefixtures("logdir")
@pytest.mark.parametrize("half", [False, True])
def test_a_checkpoint_plays_in_the_precision_of_its_training(
    half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With UseAmp, on a device that has bfloat16, TF32 is off, as in training and evaluation."""
    monkeypatch.setattr("pwm_core.runtime.has_bfloat16", lambda _device: True)
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    try:
        train_counting("run", overrides=[f"BasicSettings={{UseAmp: {half}, TF32: true}}"])
        trained = products.allow_tf32
        products.allow_tf32 = not trained
        record(tmp_path / "mine.npz", "-n", "run")
        assert products.allow_tf32 is trained is not half
    finally:
        use_tensor_float(before)


@pytest.mark.usefixtures("logdir")
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "random play needs -env_name"),
        (("-n", "nothing"), "nothing"),
        (("-o", "mine.pkl", "-env_name", "count"), r"named \*\.npz"),
    ],
)
def test_recording_refuses(argv: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        record(tmp_path / "mine.npz", *argv)
    assert not (tmp_path / "mine.npz").exists()


# --------------------------------------------------------------------------------- demonstrations


def demonstrate(path: Path, config: Config, task: str = "count") -> Any:
    domain = counting_domain((7,))[0]
    env = domain.make_env(config, task, 1, 0)
    spec = domain.transition(config, env)
    return load_demonstration(path, task, env, spec, config.JointTrainAgent, CPU)


@pytest.mark.parametrize("storage", ["auto", "memory", "device", "disk"])
def test_a_demonstration_is_a_replay_of_its_steps(storage: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    recording = make_recording(arrays(), "here")
    write_recording(path, recording)
    buffer = demonstrate(path, small_config(f"JointTrainAgent.BufferStorage={storage}"))
    assert buffer.size == 30
    for name, stored in buffer.read(0, 30).items():
        np.testing.assert_array_equal(stored[0].numpy(), recording.arrays()[name])
    assert buffer.sample(3, 4).obs.shape == (3, 4, 8, 8, 3)


UNFIT: dict[str, dict[str, np.ndarray]] = {
    "obs has the shape": {"obs": np.zeros((30, 16, 16, 3), np.uint8)},
    "dtype float64": {"obs": np.zeros((30, 8, 8, 3))},
    "actions that count does not have": {"action": np.full(30, 3)},
    "action has the shape": {"action": np.zeros((30, 2))},
}


@pytest.mark.parametrize("says", UNFIT)
def test_a_demonstration_of_something_else_is_refused(says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    write_recording(path, make_recording(arrays() | UNFIT[says], "here"))
    with pytest.raises(UserError, match=says):
        demonstrate(path, small_config())


def test_a_demonstration_of_another_task_or_too_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    write_recording(path, make_recording(arrays(), "here", {"task": "other"}))
    with pytest.raises(UserError, match="recorded on other, not on count"):
        demonstrate(path, small_config())
    write_recording(path, make_recording(arrays(3), "here"))
    with pytest.raises(UserError, match="has 3 steps, and sequences of 4 are sampled"):
        demonstrate(path, small_config())


STORM = (
    "Models={Method: storm, Act: ReLU, ZeroHeads: false}",
    "Models.WorldModel={SequenceModel: attention, Heads: 2, Prior: linear, PosteriorNorm: false}",
    "Models.WorldModel={ImageOutput: linear, ImageLoss: squared, ImagineWindow: 2}",
    "Models.Agent={StepWeight: one, Percentile: kth, LR: 0.1}",
    "JointTrainAgent={ImagineBatchSize: 5, DemonstrationBatchSize: 2}",
    "JointTrainAgent={ImagineDemonstrationBatchSize: 2, UseDemonstration: true}",
    "JointTrainAgent={SaveEverySteps: 4, SampleMaxSteps: 48, BufferMaxLength: 37}",
)


@pytest.mark.usefixtures("logdir")
def test_storm_with_a_demonstration_resumes_exactly(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    write_recording(path, make_recording(arrays(), "here"))
    given: dict[str, Any] = {"overrides": STORM}
    train_counting("whole", "-trajectory_path", str(path), **given)
    resume = ["-resume", "-trajectory_path", str(path)]
    for step in (9, 30, 5):
        with pytest.raises(CrashError):
            train_counting("run", *resume, hook=crash_at(step), **given)
    with pytest.raises(UserError, match="needs -trajectory_path FILE"):
        train_counting("run", "-resume", **given)
    other = tmp_path / "other.npz"
    write_recording(other, make_recording(arrays(20), "here"))
    with pytest.raises(UserError, match="demonstration was"):
        train_counting("run", "-resume", "-trajectory_path", str(other), **given)
    train_counting("run", *resume, **given)
    assert_same_run(folder("whole"), folder("run"))
    lines = records(folder("run"))
    assert all(np.isfinite(line.get("ActorCritic/policy_loss", 0.0)) for line in lines)


@pytest.mark.usefixtures("logdir")
def test_resume_without_a_name_finds_the_run_of_the_same_demonstration(tmp_path: Path) -> None:
    """As ``./train.sh -resume`` looks for it."""
    path, name = tmp_path / "mine.npz", "count-seed0-20200101-000000"
    write_recording(path, make_recording(arrays(), "here"))
    argv = ["-trajectory_path", str(path), *flags("JointTrainAgent.UseDemonstration=true")]
    with pytest.raises(CrashError):
        train_counting(name, *argv, hook=crash_at(40))
    domain = counting_domain((7,), life=2)[0]
    same = ["-env_name", "count", "-config_path", CONFIG, *flags(*TINY), *argv, "-resume"]
    arguments = train_parser(domain, quick=True).parse_args(same)
    _fill_in(domain, arguments)
    assert arguments.name == name
    write_recording(path, make_recording(arrays(20), "here"))
    with pytest.raises(UserError, match="demonstration was"):
        _fill_in(domain, train_parser(domain, quick=True).parse_args(same))


@pytest.mark.usefixtures("logdir")
def test_a_trajectory_is_read_only_if_demonstrations_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_counting("plain")
    train_counting("other", "-trajectory_path", str(tmp_path / "missing.npz"))
    assert "UseDemonstration is false: -trajectory_path is not read" in capsys.readouterr().out
    assert_same_run(folder("plain"), folder("other"))
    with pytest.raises(UserError, match=r"missing\.npz is no file"):
        train_counting(
            *("third", "-trajectory_path", str(tmp_path / "missing.npz")),
            overrides=["JointTrainAgent.UseDemonstration=true"],
        )
