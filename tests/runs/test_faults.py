"""What goes wrong around a run, provoked: signals, numbers, disks, memory, processes, trackers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pwm_core.commands import cli
from pwm_core.commands.plot import plot
from pwm_core.config_file import load_config
from pwm_core.errors import UserError
from pwm_core.models.distributions import SymlogTwoHot, symexp
from pwm_core.paths import LOGDIR_VARIABLE, find_logdir
from pwm_core.runs.checkpoint import ResumePoints
from pwm_core.runs.files import write_text
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.tracking import JsonLines, Tracker, Wandb
from pwm_core.training.diagnosis import diagnose
from pwm_core.training.replay_buffer import Field, ReplayBuffer, TransitionSpec
from tests.helpers import Data, load_small, make_agent
from tests.helpers_envs import CONFIG, DEFAULTS, TINY, CountingEnv, counting_domain
from tests.helpers_runs import (
    LIMIT_MEMORY,
    LIMIT_SIZE,
    PONG,
    CrashError,
    Hook,
    Job,
    RunTree,
    assert_same_run,
    atari,
    crash_at,
    dmc,
    evaluate_run,
    fill,
    folder,
    hooked,
    last_step,
    records,
    same,
    small_disk,
    tensors,
    train_counting,
    wait_for,
    wait_for_step,
)

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("logdir")

# ---------------------------------------------------------------------------------------- signals


def points(tree: RunTree, name: str) -> list[int]:
    return ResumePoints(tree.folder(name)).steps()


def stopped_by(number: int, job: Job) -> int:
    """The step at which the signal ended the run."""
    job.kill(number)
    job.ended(75)
    before, _, after = job.stderr.partition(" at step ")
    step, _, rest = after.partition(": ")
    assert before == signal.Signals(number).name
    assert rest == "a checkpoint was written; -resume continues from there\n"
    return int(step)


def test_signals(tree: RunTree, pong: Path) -> None:
    """SIGTERM ends the run with a checkpoint, SIGUSR1 writes one and the run goes on, SIGINT ends
    it again, and the run is the one that no signal met."""
    argv, run = atari("disturbed", PONG), tree.folder("disturbed")
    job = tree.start("atari", *argv)
    wait_for_step(job, run, 110)
    first = stopped_by(signal.SIGTERM, job)
    assert points(tree, "disturbed") == [first]

    job = tree.start("atari", *argv, "-resume")
    wait_for_step(job, run, first + 5)
    job.kill(signal.SIGUSR1)
    wait_for(lambda: len(points(tree, "disturbed")) == 2)
    second = points(tree, "disturbed")[-1]
    assert first < second < 170
    wait_for_step(job, run, second + 5)
    third = stopped_by(signal.SIGINT, job)
    assert points(tree, "disturbed") == [second, third], "SIGUSR1 writes one, not two"

    job = tree.start("atari", *argv, "-resume").ended()
    assert f"continuing from step {third}" in job.stdout
    assert_same_run(pong, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number: int, tree: RunTree) -> None:
    """In the midst of a step that would take hours."""
    name = f"hasty{number}"
    argv = atari(name, PONG, "JointTrainAgent={AgentUpdate: 10000000, SaveEverySteps: 40}")
    job = tree.start("atari", *argv)
    wait_for(lambda: "training:" in job.everything)
    job.kill(signal.SIGTERM)
    time.sleep(0.5)
    assert job.running, "the first lets the step be finished"
    job.kill(number)
    assert job.wait() == -number
    assert points(tree, name) == [40, 80]


# ---------------------------------------------------------------------------------------- numbers


def state_of(agent: Any) -> dict[str, Any]:
    """Weights, BatchNorm's statistics, return scale, the optimisers' moments; without counters and
    the slow critic, which goes on following the critic."""
    leaves = tensors(agent.state_dict())
    out = ("skipped.", "in_a_row.", "longest.")
    kept = {k: v for k, v in leaves.items() if not k.endswith(out) and "slow_critic" not in k}
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kept.items()}


@pytest.mark.parametrize("part", ["WorldModel", "ActorCritic"])
@pytest.mark.parametrize("cause", ["loss", "gradient NaN", "gradient inf"])
def test_an_update_that_is_not_finite_changes_nothing(part: str, cause: str) -> None:
    """Not a bit; and the next one is taken."""
    config = load_small()
    agent = make_agent(config)
    batch = Data().batch(config)
    trajectory = agent.imagine(batch)

    def update(reward: float = 1.0) -> dict[str, torch.Tensor]:
        if part == "WorldModel":
            return agent.train_world_model(batch._replace(reward=batch.reward * reward))
        return agent.train_actor_critic(trajectory._replace(reward=trajectory.reward * reward))

    update()
    before = state_of(agent)
    if cause == "loss":
        assert not update(np.nan)[f"{part}/grad_norm"].isfinite()
    else:
        module = agent.world_model if part == "WorldModel" else agent.actor_critic
        factor = float(cause.split()[1])
        handle = next(module.parameters()).register_hook(lambda gradient: gradient * factor)
        assert not update()[f"{part}/grad_norm"].isfinite()
        handle.remove()
    after = state_of(agent)
    assert [key for key in before if not same(before[key], after[key])] == []
    other = {"WorldModel", "ActorCritic"} - {part}
    assert agent.skipped() == {f"{part}/skipped_updates": 1} | {
        f"{name}/skipped_updates": 0 for name in other
    }
    update()
    after = state_of(agent)
    moved = [key for key in before if not same(before[key], after[key])]
    assert any("running_mean" in key for key in moved) or part == "ActorCritic"
    assert any("exp_avg" in key for key in moved)
    optimizer = agent.optimizers[part]
    assert (int(optimizer.skipped), int(optimizer.in_a_row), optimizer.take_longest()) == (1, 0, 1)


def test_rows_of_skipped_updates_are_counted_across_looks() -> None:
    config = load_small()
    agent = make_agent(config)
    batch, optimizer = Data().batch(config), agent.optimizers["WorldModel"]
    bad = batch._replace(reward=batch.reward * np.nan)
    looks = []
    for sequence in ([bad, bad, batch], [bad, batch, bad], [bad, bad], [batch]):
        for one in sequence:
            agent.train_world_model(one)
        looks.append(optimizer.take_longest())
    assert looks == [2, 1, 3, 3]  # a row that is open at a look counts at the next one too
    assert int(optimizer.skipped) == 6


def nan_rewards(first: int, last: int) -> Hook:
    """A hook that makes the rewards of those steps NaN."""

    def hook(step: int, env: CountingEnv) -> None:
        if first <= step <= last:
            env._actions = env._actions * np.nan

    return hook


def test_a_nan_in_the_replay_costs_the_updates_that_meet_it() -> None:
    loop = "JointTrainAgent={BufferMaxLength: 10, LogEverySteps: 1}"
    train_counting("run", overrides=[loop], hook=nan_rewards(30, 30))
    skipped = {
        int(r["step"]): r["WorldModel/skipped_updates"]
        for r in records(folder("run"))
        if "WorldModel/skipped_updates" in r
    }
    assert skipped[29] == 0 < skipped[40] == skipped[60] < 11, "it left the ring at step 40"
    weights = tensors(RunFolder("run").load_weights(60, CPU))
    assert all(torch.isfinite(w).all() for w in weights.values() if isinstance(w, torch.Tensor))


def test_too_many_in_a_row_end_the_run_with_a_diagnosis() -> None:
    loop = "JointTrainAgent={MaxSkippedUpdates: 4, BufferMaxLength: 8, LogEverySteps: 2}"
    with pytest.raises(UserError) as raised:
        train_counting("run", overrides=[loop], hook=nan_rewards(25, 60))
    said = str(raised.value)
    assert "\n" not in said
    assert "updates of WorldModel in a row were skipped" in said
    assert "MaxSkippedUpdates = 4" in said
    assert "values of reward in the replay are NaN or infinite: see the environment" in said
    assert "the checkpoint of step 20 is there" in said
    step = records(folder("run"))[-1]["step"]
    assert 28 <= step < 40
    assert str(int(step)) in said
    assert ResumePoints(folder("run")).newest().step == 20
    count = int(said.partition("step ")[2].partition(": ")[2].split()[0])
    assert count > 4


def test_diagnosis_names_the_part() -> None:
    config = load_config(CONFIG, defaults=DEFAULTS, overrides=TINY)
    domain, _ = counting_domain((7,))
    env = domain.make_env(config, "count", 1, 0)
    replay = ReplayBuffer(domain.transition(config, env), 1, 30, CPU)
    for _ in range(20):
        replay.add(env._render(), *(np.ones(1) for _ in range(4)))

    def diagnosis(module: str, key: str, value: float) -> str:
        torch.manual_seed(0)
        agent = cli.make_agent(domain, config, env, "cpu")
        with torch.no_grad():
            getattr(agent, module).get_parameter(key).fill_(value)
        return diagnose(agent, replay)

    assert "the world model's prior.1.weight holds" in diagnosis(
        "world_model", "prior.1.weight", np.nan
    )
    actor = next(
        iter(dict(cli.make_agent(domain, config, env, "cpu").actor_critic.named_parameters()))
    )
    assert f"the actor-critic's {actor} holds" in diagnosis("actor_critic", actor, np.inf)
    assert "not finite: WorldModel/dyn_loss" in diagnosis("world_model", "prior.1.weight", 1e38)
    assert "it is the gradients that overflow" in diagnosis("world_model", "prior.1.bias", 0.0)
    replay._data["reward"][0, 3] = np.inf
    assert "1 values of reward in the replay" in diagnosis("world_model", "prior.1.bias", 0.0)


def test_targets_beyond_the_bins_are_clipped_and_counted() -> None:
    two_hot = SymlogTwoHot(41, 20.0)
    edge = float(symexp(torch.tensor(20.0)))
    beyond = torch.tensor([[2 * edge, -2 * edge, np.inf], [0.9 * edge, -0.9 * edge, 0.0]])
    assert two_hot.count_clipped(beyond).item() == 3
    logits = torch.randn(2, 3, 41)
    ends = torch.tensor([[edge, -edge, edge], [0.9 * edge, -0.9 * edge, 0.0]])
    torch.testing.assert_close(two_hot.loss(logits, beyond), two_hot.loss(logits, ends))

    config = load_small()
    agent = make_agent(config)
    batch = Data().batch(config)
    assert agent.train_world_model(batch)["WorldModel/clipped_rewards"] == 0
    batch.reward[0, :3] = torch.tensor([2e9, -2e9, 1e8])
    assert agent.train_world_model(batch)["WorldModel/clipped_rewards"] == 2
    trajectory = agent.imagine(batch)
    assert agent.train_actor_critic(trajectory)["ActorCritic/clipped_returns"] == 0
    far = trajectory._replace(reward=torch.full_like(trajectory.reward, -1e12))
    metrics = agent.train_actor_critic(far)
    assert metrics["ActorCritic/clipped_returns"] == trajectory.reward.numel()
    assert agent.skipped() == {"WorldModel/skipped_updates": 0, "ActorCritic/skipped_updates": 0}


def test_a_nan_target_gives_a_nan_loss() -> None:
    """As an index it would end the run on a CPU, and spoil the whole process on a GPU."""
    two_hot = SymlogTwoHot(41, 20.0)
    loss = two_hot.loss(torch.zeros(3, 41), torch.tensor([1.0, np.nan, 2.0]))
    assert loss.isnan().tolist() == [False, True, False]


# ------------------------------------------------------------------------------------------ disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that is soon full."""
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(small_disk(tmp_path / "disk", "12m"))
        except OSError as error:
            pytest.skip(f"no small disk can be mounted here: {error}")
        yield path


LONG = (
    "JointTrainAgent={BufferWarmUp: 24, SampleMaxSteps: 45, SaveEverySteps: 10, LogEverySteps: 1}",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of :data:`LONG` whose disk had room."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOGDIR_VARIABLE, str(tmp_path_factory.mktemp("whole")))
        train_counting("whole", overrides=LONG)
        return folder("whole")


def filling(disk: Path, full: int, free: int | None = None, leave: int = 0) -> Hook:
    """A hook that fills the disk before one step and, where told to, frees it before another."""

    def hook(step: int, env: CountingEnv) -> None:
        if step == full:
            fill(disk, leave)
        if step == free:
            (disk / "ballast").unlink()
        for line in (folder("run") / "metrics.jsonl").read_text().splitlines():
            json.loads(line)  # never half a line, at any step

    return hook


@pytest.mark.parametrize("leave", ["nothing", "weights", "weights and chunk"])
def test_a_full_disk_costs_checkpoints_only(
    leave: str,
    disk: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Full from step 25 to step 38: the point of step 30 is missing, at whichever of its files the
    room ends; points, metrics and the run are those of a disk with room."""
    monkeypatch.setenv(LOGDIR_VARIABLE, str(disk))
    size = (whole / "checkpoints" / "000000010.pt").stat().st_size
    room = {"nothing": 0, "weights": size + 8192, "weights and chunk": size + 40960}[leave]
    seen: list[int] = []
    fills = filling(disk, 25, 38, room)

    def hook(step: int, env: CountingEnv) -> None:
        if step == 32:
            seen.extend([ResumePoints(folder("run")).newest().step, *RunFolder("run").steps()])
        fills(step, env)

    train_counting("run", overrides=LONG, hook=hook)
    said = capsys.readouterr().out
    assert "warning: the checkpoint of step 30 could not be written (No space left" in said
    assert seen == [20, 10, 20] + [30] * (leave != "nothing")
    assert said.count("its lines wait in memory") == 1 or leave != "nothing"
    assert "step 40 could not" not in said
    assert_same_run(whole, folder("run"))


def test_a_disk_that_stays_full(
    disk: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends with a line and can be resumed once there is room."""
    monkeypatch.setenv(LOGDIR_VARIABLE, str(disk))
    with pytest.raises(UserError, match="last checkpoint is missing; make room and -resume"):
        train_counting("run", overrides=LONG, hook=filling(disk, 25))
    assert "lines could not be written" in capsys.readouterr().out
    with pytest.raises(UserError, match="last checkpoint is missing; make room and -resume"):
        train_counting("run", "-resume", overrides=LONG)
    (disk / "ballast").unlink()
    train_counting("run", "-resume", overrides=LONG)
    assert "continuing from step 20:" in capsys.readouterr().out
    assert_same_run(whole, folder("run"))


def test_lines_that_wait_for_room_are_in_the_checkpoint(disk: Path) -> None:
    path = disk / "metrics.jsonl"
    lines = JsonLines(path)
    lines.log(1, {"a": 1.0})
    ballast = fill(disk)
    many = {f"name{i}": float(i) for i in range(500)}
    for step in (2, 3):
        lines.log(step, many)
    state = lines.state_dict()
    assert [len(path.read_text().splitlines()), len(state["waiting"])] == [1, 2]
    ballast.unlink()
    lines.log(4, {"a": 4.0})
    assert [r["step"] for r in records(disk)] == [1, 2, 3, 4]
    again = JsonLines(path)  # killed, and resumed from the state
    again.load_state_dict(state)
    again.log(4, {"a": 5.0})
    assert records(disk) == [{"step": 1, "a": 1}, *({"step": s, **many} for s in (2, 3)),
                             {"step": 4, "a": 5}]  # fmt: skip


def test_a_full_disk_costs_a_video(
    disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LOGDIR_VARIABLE, str(disk))
    loop = "JointTrainAgent={SampleMaxSteps: 33, VideoLogStep: 14}"
    train_counting("run", overrides=[loop], hook=filling(disk, 27, 29))
    said = capsys.readouterr().out
    for name in ("observation", "reconstruction", "imagination"):
        assert f"{name}_000000028.mp4 could not be written" in said
    assert not list((folder("run") / "videos").iterdir()), "no half a video"
    assert RunFolder("run").steps()[-1] == 33


def fails_with(capsys: pytest.CaptureFixture[str], command: Any) -> str:
    """The one line on stderr of a command that ends with exit status 2."""
    with pytest.raises(SystemExit) as stop:
        cli.run_command(command)
    assert stop.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    return line


def test_a_full_disk_leaves_the_scores(
    disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_counting("run", overrides=LONG)
    scores = find_logdir().scores
    scores.symlink_to(disk)

    def score() -> None:
        evaluate_run(counting_domain((7,))[0], ["-n", "run", "-device", "cpu", *which])

    which = ["-checkpoint", "10"]
    score()
    before = {path: path.read_bytes() for path in disk.iterdir()}
    assert {path.name for path in before} == {"run.csv", "run.json"}
    ballast = fill(disk)
    which = ["-checkpoint", "20"]
    line = fails_with(capsys, score)
    assert line == f"error: {scores / 'run.csv'}: No space left on device"
    ballast.unlink()
    assert {path: path.read_bytes() for path in disk.iterdir()} == before


def test_a_disk_that_is_full_from_the_start(
    disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LOGDIR_VARIABLE, str(disk))
    ballast = fill(disk)
    line = fails_with(capsys, lambda: train_counting("run", overrides=LONG))
    assert line == f"error: {folder('run') / 'run.json'}: No space left on device"
    assert ballast.exists()
    assert list(find_logdir().runs.iterdir()) == []


def test_a_replay_on_disk_is_laid_out_before_the_disk_can_fill(disk: Path) -> None:
    """Written to with no room left, a sparse file would kill the process."""
    spec = TransitionSpec(Field((1024,), torch.uint8), Field((), torch.int64))
    replay = ReplayBuffer(spec, 1, 4000, CPU, storage="disk", directory=disk / "replay")
    fill(disk)
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (4000, 1024), dtype=np.uint8)
    for row in stored:
        replay.add(row[None], *(np.zeros(1) for _ in range(4)))
    assert (replay.read(0, 4000)["obs"][0].numpy() == stored).all()
    with pytest.raises(UserError, match="BufferMaxLength"):
        ReplayBuffer(spec, 1, 4000, CPU, storage="disk", directory=disk / "other")


def test_a_limit_on_file_sizes(tree: RunTree) -> None:
    """Of a real command: no checkpoint fits, the metrics do."""
    loop = "JointTrainAgent={SampleMaxSteps: 120, SaveEverySteps: 60, LogEverySteps: 5}"
    job = tree.start("atari", *atari("limited", loop), limits={LIMIT_SIZE: 64 * 1024})
    job.refused("last checkpoint is missing; make room and -resume")
    assert "checkpoint of step 60 could not be written (File too large)" in job.stdout
    assert last_step(tree.folder("limited")) == 120
    assert not list(tree.folder("limited").rglob("*.pt*"))


# ----------------------------------------------------------------------------- memory, processes


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("Models.Hidden=150000", ["the networks and their optimisers need", "lower Models.Hidden"]),
        (
            "JointTrainAgent.BatchSize=1000000",
            ["(tried to allocate", "start a new run with a lower JointTrainAgent.Batch"],
        ),
    ],
)
def test_out_of_memory_is_one_line(setting: str, says: list[str], tree: RunTree) -> None:
    """On the CPU: the networks do not fit, which is known before they are made; or the first batch
    does not."""
    name = f"large{setting[-5:]}"
    job = tree.start("atari", *atari(name, setting), limits={LIMIT_MEMORY: 12 << 30})
    job.refused("out of memory", *says)


def test_compiling_without_a_compiler_is_refused() -> None:
    from torch._inductor import config  # seconds that no other test takes

    with (
        config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(UserError, match=r"Compile: compile needs a C\+\+ compiler .* or write off"),
    ):
        train_counting("run", overrides=["BasicSettings.Compile=compile"])
    assert not folder("run").exists()


@pytest.mark.parametrize("part", ["environment", "weights"])
def test_out_of_memory_in_evaluation_is_one_line(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the weights are read, which is then not said to be the checkpoint's fault."""
    train_counting("run", overrides=LONG)
    domain = counting_domain((7,))[0]
    if part == "environment":
        domain = hooked(domain, lambda step, env: np.ones(1 << 55))
    else:
        monkeypatch.setattr(RunFolder, "load_weights", lambda *_: torch.ones(1 << 55))
    with pytest.raises(UserError, match=r"out of memory \(.*lower JointTrainAgent.EvalEnvs"):
        evaluate_run(domain, ["-n", "run", "-device", "cpu"])


@pytest.mark.slow  # the simulator's processes take seconds to start
def test_a_run_whose_worker_is_killed_goes_on(tree: RunTree) -> None:
    """What the replacement does is tested in ``test_dmc_envs.py``."""
    loop = "JointTrainAgent={SampleMaxSteps: 260, BufferWarmUp: 100, LogEverySteps: 8}"
    job = tree.start("dmc", *dmc("orphan", loop))
    run = tree.folder("orphan")
    wait_for_step(job, run, 120)
    workers = job.children()
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    job.ended()
    assert "another takes its place, the episodes it ran are closed" in job.everything
    restarts = [r["Rollout/worker_restarts"] for r in records(run) if "frames" in r]
    assert (restarts[0], restarts[-1]) == (0, 1)
    assert last_step(run) == 260


def test_the_lock_is_of_one_process_and_leaves_with_it() -> None:
    with RunFolder("run").lock():
        lock = (folder("run") / "lock").stat().st_ino
        for _ in range(2):
            with pytest.raises(UserError, match=f"is being trained by process {os.getpid()} on"):
                train_counting("run", overrides=LONG)
        assert (folder("run") / "lock").stat().st_ino == lock, "the refused one leaves it alone"
    assert not folder("run").exists(), "nothing had begun"
    train_counting("run", overrides=LONG)
    with RunFolder("run").lock():
        pass
    assert (folder("run") / "lock").exists()


def test_a_lock_that_cannot_say_whose_it_is(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOGDIR_VARIABLE, str(disk))
    folder("run").mkdir(parents=True)
    fill(disk)
    with (
        RunFolder("run").lock(),
        pytest.raises(UserError, match="being trained by another process"),
        RunFolder("run").lock(),
    ):
        pass


def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none; the kernel's error names no file."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=r"lock cannot be locked \(No locks available\): .*-logdir"):
        train_counting("run", overrides=LONG)


# --------------------------------------------------------------------------------------- trackers


class Broken:
    """A sink that fails from its second call on."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.calls += 1
        if self.calls > 1:
            raise ConnectionError("the network\nis gone")

    def close(self) -> None:
        raise RuntimeError("closed though it was dropped")


def test_a_sink_that_fails_is_dropped_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = Broken()
    tracker = Tracker(JsonLines(tmp_path / "metrics.jsonl"), tmp_path, [sink])
    for step in range(1, 6):
        tracker.log(step, {"a": step})
    tracker.close()
    warning = "warning: Broken failed and is left out from now on: the network is gone\n"
    assert capsys.readouterr().out == warning
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3, 4, 5]
    assert sink.calls == 2


def test_frames_that_cannot_be_encoded_cost_a_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(JsonLines(tmp_path / "metrics.jsonl"), tmp_path, [])
    tracker.video(1, "Video/Small", np.zeros((3, 1, 1, 3), np.uint8))  # both sides must be even
    tracker.close()
    assert "small_000000001.mp4 could not be written: " in capsys.readouterr().out


def test_wandb_that_starts_neither_online_nor_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(mode: str, **_: Any) -> None:
        raise RuntimeError(f"not {mode}\nhere")

    monkeypatch.setattr("wandb.init", init)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="wandb cannot start: not offline here"):
        Wandb(tmp_path, "run", "project", {}, "abc")


def with_wandb(name: str) -> list[str]:
    argv = atari(name, "JointTrainAgent={SampleMaxSteps: 140, LogEverySteps: 5}")
    argv[argv.index("-logger") + 1] = "wandb"
    return argv


@pytest.mark.slow  # wandb takes half a minute to give up
def test_wandb_whose_server_cannot_be_reached(tree: RunTree) -> None:
    job = tree.start(
        "atari", *with_wandb("unreachable"), WANDB_MODE="online", WANDB_API_KEY="x" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
    ).ended()  # fmt: skip
    assert "wandb: the server cannot be used" in job.stdout
    assert list(tree.folder("unreachable").glob("wandb/offline-run-*/*.wandb"))
    assert last_step(tree.folder("unreachable")) == 140


@pytest.mark.slow
def test_wandb_whose_process_is_killed(tree: RunTree) -> None:
    job = tree.start("atari", *with_wandb("widowed"))
    wait_for_step(job, tree.folder("widowed"), 110)
    for child in job.children():
        os.kill(child, signal.SIGKILL)
    job.ended()
    assert job.stdout.count("warning: Wandb failed and is left out from now on") == 1
    argv = with_wandb("unwatched")
    argv[argv.index("-logger") + 1] = "none"
    tree.start("atari", *argv).ended()
    assert_same_run(tree.folder("unwatched"), tree.folder("widowed"))


# ------------------------------------------------------------------------------------------ files


def test_a_crash_leaves_the_old_file_and_the_next_run_no_trace(tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        train_counting("run", overrides=LONG, hook=crash_at(15))
    for name in ("", "resume", "replay", "checkpoints"):
        write_text(folder("run") / name / ".half.pt.123.tmp", "half")
    train_counting("run", "-resume", overrides=LONG)
    assert not list(folder("run").rglob(".*"))


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path) -> None:
    train_counting("run", overrides=LONG)
    run = folder("run")
    plot([run], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists()
    with pytest.raises(UserError, match=r"-o .*curve.xyz: Format 'xyz' is not supported"):
        plot([run], tmp_path / "curve.xyz")
    (run / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json is missing or damaged"):
        plot([run], tmp_path / "curve.png")
