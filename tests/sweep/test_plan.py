"""Sweep files, the runs they stand for, and what is refused before anything begins."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pwm_core.config_file import dump_config
from pwm_core.domain import domain_names as names
from pwm_core.domain import find_domain
from pwm_core.errors import UserError
from pwm_core.paths import LOGDIR_VARIABLE, REPOSITORY
from sweep import schema
from sweep.__main__ import main
from sweep.estimate import measured_disk, measured_speed
from sweep.places import Places, project_places, write_json
from sweep.plan import Plan, make_plan, other_settings
from sweep.records import take_lock
from sweep.states import Observer, local_lock

SWEEPS = REPOSITORY / "config_files" / "sweeps"
FILE = {"domain": "atari", "tasks": ["Pong", "Boxing"], "seeds": [1, 2]}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Return folders that only this test uses."""
    monkeypatch.setenv(LOGDIR_VARIABLE, str(tmp_path))
    return project_places()


def write(path: Path, content: Any) -> Path:
    file = path / "own.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def plan_of(path: Path, **keys: Any) -> Plan:
    return make_plan(schema.load(write(path, {**FILE, **keys})))


def test_the_benchmarks_are_whole() -> None:
    atari = make_plan(schema.load(SWEEPS / "atari100k.yaml"))
    assert len(atari.runs) == 26 * 5
    assert {(run.steps, run.frame_skip) for run in atari.runs} == {(102_000, 4)}
    dmc = make_plan(schema.load(SWEEPS / "dmc.yaml"))
    assert len(dmc.runs) == 16 * 2 * 5
    frames = {(run.task, run.variant): run.steps * run.frame_skip for run in dmc.runs}
    assert frames["cartpole_balance", "proprio"] == 100_000
    assert frames["cheetah_run", "proprio"] == 200_000
    assert frames["cartpole_balance", "visual"] == 200_000
    assert frames["cheetah_run", "visual"] == 400_000
    assert sum(frames.values()) == 8 * (100_000 + 200_000 + 200_000 + 400_000)


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_file_is_valid(path: Path) -> None:
    assert make_plan(schema.load(path)).runs


def test_every_domain_is_found_without_being_named() -> None:
    assert {"atari", "dmc"} <= set(names())
    for name in names():
        lists = find_domain(name).benchmark.lists
        assert len(lists["all"]) == len(set(lists["all"])) > 1


def test_names_order_and_flags(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, suffix="x", overrides={"Models.Hidden": 64}, budget=40_000,
        variants={"a": {}, "b": {"overrides": {"Models": {"Hidden": 128}}}},
        per_task={"Boxing": {"budget": 80_000}},
    )  # fmt: skip
    assert [run.name for run in plan.runs][:4] == [
        *("Pong-a-x-seed1", "Boxing-a-x-seed1", "Pong-b-x-seed1", "Boxing-b-x-seed1")
    ]
    assert [run.steps for run in plan.runs][:2] == [10_000, 20_000]
    assert plan.config(plan.runs[2]).Models.Hidden == 128
    assert plan.config(plan.runs[4]).BasicSettings.Seed == 2
    assert plan.runs[0].env_name == "ALE/Pong-v5"
    assert make_plan(plan.sweep, ["*-b-x-seed2"]).runs == (plan.runs[6], plan.runs[7])


def test_a_budget_counts_the_action_repeat(tmp_path: Path) -> None:
    keys = {"domain": "dmc", "tasks": "cup_catch", "budget": "benchmark"}
    own = {"BasicSettings.FrameSkip": 4, "BasicSettings.ObsType": "proprio"}
    run = plan_of(tmp_path, **keys, overrides=own).runs[0]
    assert (run.steps, run.frame_skip) == (25_000, 4)


def test_a_budget_counts_the_tasks_own_action_repeat(tmp_path: Path) -> None:
    own = {"BasicSettings.FrameSkip": "task", "BasicSettings.ObsType": "proprio"}
    keys = {"domain": "dmc", "tasks": ["cartpole_balance", "cup_catch"], "budget": "benchmark"}
    runs = plan_of(tmp_path, **keys, seeds=1, overrides=own).runs
    assert [run.steps * run.frame_skip for run in runs] == [100_000, 100_000]
    assert runs[0].frame_skip != runs[1].frame_skip


def test_the_replay_holds_a_budget_and_is_never_below_the_configs(tmp_path: Path) -> None:
    """Else a larger budget could not extend a run: the replay of a run must not shrink."""
    keys = {"domain": "dmc", "tasks": "cup_catch", "config": "config_files/dmc_tiny.yaml"}
    own = {"BasicSettings.FrameSkip": 2, "BasicSettings.ObsType": "proprio"}
    for budget, replay in ((40_000, 50_000), (120_002, 60_008)):  # eight environments step together
        plan = plan_of(tmp_path, **keys, overrides=own, budget=budget)
        assert plan.config(plan.runs[0]).JointTrainAgent.BufferMaxLength == replay
        assert plan.runs[0].steps == budget // 2


def test_some_runs_of_a_local_sweep_cannot_be_cancelled(tmp_path: Path, places: Places) -> None:
    lock = take_lock(local_lock(places, "own"))
    assert lock is not None
    write_json(places.sweep("own") / "local.json", {"host": "vm", "process": 1, "token": "a"})
    with lock, pytest.raises(UserError, match="cancelled as a whole: leave out --only"):
        main([str(write(tmp_path, FILE)), "--local", "--cancel", "--only", "Pong*"])


def test_a_local_sweep_of_another_user_or_that_has_just_ended(
    tmp_path: Path, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    """Process 1 is nobody's but root's, and no process has the number 2**22 + 1."""
    command = [str(write(tmp_path, FILE)), "--local", "--cancel"]
    about = {"host": socket.gethostname(), "process": 2**22 + 1, "token": "a"}
    write_json(places.sweep("own") / "local.json", about)
    lock = take_lock(local_lock(places, "own"))
    assert lock is not None
    with lock:
        main(command)
        assert "nothing of this sweep runs or waits" in capsys.readouterr().out
        if os.getuid():
            write_json(places.sweep("own") / "local.json", about | {"process": 1})
            with pytest.raises(UserError, match="process 1 runs sweep own for another user"):
                main(command)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({**FILE, "seed": [1]}, "unknown key seed; did you mean 'seeds'"),
        ({**FILE, "resources": {"gpu": 1}}, "unknown key resources.gpu; did you mean 'gpus'"),
        ({**FILE, "variants": {"a": {"overides": {}}}}, "did you mean 'overrides'"),
        ({"domain": "atari"}, "seeds is missing"),
        ({**FILE, "domain": "atarri"}, "'atarri' is not a domain; did you mean 'atari'?"),
        ({**FILE, "tasks": ["Pnog"]}, "unknown game 'ALE/Pnog-v5'; did you mean"),
        ({**FILE, "tasks": ["Pong", "Pong"]}, "it holds Pong twice"),
        ({**FILE, "tasks": []}, "at least one entry is needed"),
        ({**FILE, "seeds": [-1]}, "seeds.0 = -1 is not valid"),
        ({**FILE, "seeds": [True]}, "seeds.0 = True is not valid"),
        ({**FILE, "budget": "short"}, "budget must be config, benchmark or a number"),
        (
            {**FILE, "budget": 9000, "overrides": {"JointTrainAgent": {"SampleMaxSteps": 9999}}},
            "budget: 9000 and an override of JointTrainAgent.SampleMaxSteps both say how long",
        ),
        ({**FILE, "per_task": {"Bxing": {}}}, "per_task.Bxing is no task of the sweep; did you"),
        (
            {**FILE, "overrides": {"Models.Hiden": 3}},
            ": -set Models.Hiden=3: unknown key Models.Hiden; did you mean",
        ),
        ({**FILE, "overrides": {"Models.Hidden": 30}}, "HeadDivisor = 4 is impossible"),
        ({**FILE, "config": "none.yaml"}, "config file none.yaml does not exist"),
        ({**FILE, "suffix": "a/b"}, "suffix = 'a/b' is not valid"),
        ({**FILE, "resources": {"mem": "lots"}}, "resources.mem = 'lots' is not valid"),
        ({**FILE, "resources": {"time": "soon"}}, "write hours:minutes:seconds, as 24:00:00"),
        ("seeds: [1]\nseeds: [2]\n", "the key seeds is given twice"),
        ("seeds: [1", "is not valid YAML"),
        ("- 1", "holds no sections"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, places: Places, content: Any, says: str) -> None:
    with pytest.raises(UserError) as error:
        main([str(write(tmp_path, content)), "--local"])
    assert says in str(error.value)
    assert not places.runs.exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--set", "seeds"], "write key=value"),
        (["--set", "resources.gpu=1"], "unknown key resources.gpu"),
        (["--only", "Pnog*"], "--only Pnog*: no run of that name"),
        (["--status", "--cancel"], "not allowed with"),
        (["--status", "--every", "nan"], "nan is not a number of seconds"),
        (["--jobs", "0"], "0 is not a whole number from 1 on"),
        (["--dry-run", "--set", "suffix=2024-13-01"], "the value is not valid YAML"),
        (["--dry-run", "--set", "logger=tensorbord"], "'tensorbord' is not one of wandb, tensorb"),
    ],
)
def test_bad_flags_are_one_line(
    tmp_path: Path, places: Places, flags: list[str], says: str
) -> None:
    with pytest.raises(UserError) as error:
        main([str(write(tmp_path, FILE)), "--local", *flags])
    assert says in str(error.value)
    assert not places.runs.exists()


def test_a_missing_file_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"does not exist; there are .*atari100k\.yaml"):
        main(["none.yaml"])


def test_times_are_minutes(tmp_path: Path) -> None:
    for text, minutes in (("02:30:00", 150), ("1-00:00:01", 1441), (90, 90)):
        assert plan_of(tmp_path, resources={"time": text}).sweep.resources.time == minutes
    file = write(tmp_path, "domain: atari\nseeds: 1\nresources:\n  time: 12:30:00\n")
    assert schema.load(file).resources.time == 750, "YAML 1.1 reads seconds"
    assert schema.load(file, ["resources.time=24:00:00"]).resources.time == 24 * 60


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may read; pytest's are for one user alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_is_one_line(open_folder: Path) -> None:
    """The test runs as another user where this is root, because root may write anywhere."""
    tmp_path = open_folder
    file = write(tmp_path, FILE)
    (tmp_path / "eval_result").mkdir(mode=0o555)
    (tmp_path / "ckpt").mkdir(mode=0o555)
    script = (
        "import sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r}); root = Path({str(tmp_path)!r})\n"
        "from pwm_core.commands.cli import run_command; from sweep.__main__ import main\n"
        "import os, pwm_atari.envs, pwm_core.commands.train\n"
        "# another user may not read the packages, so they are loaded by now\n"
        f"os.environ[{LOGDIR_VARIABLE!r}] = str(root)\n"
        "os.geteuid() or os.seteuid(65534)\n"
        f"run_command(lambda: main([{str(file)!r}, '--local']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot be made: Permission denied" in done.stderr
    assert os.listdir(tmp_path / "ckpt") == []


# ---------------------------------------------------------------------------- what is there


def leave_results(places: Places, plan: Plan, step: int, **changes: Any) -> None:
    """Write scores, metrics and settings of the first run, as if it had reached ``step``."""
    places.results.mkdir(parents=True, exist_ok=True)
    run = plan.runs[0]
    config = plan.config(run).model_dump(mode="json")
    config["Models"].update(changes)
    (places.results / f"{run.name}.csv").write_text(f"step,frames,mean,std\n{step},1,2,3\n")
    (places.results / f"{run.name}.json").write_text(json.dumps({"config": config}))
    hardware = {"name": "toy", "device": "cpu"}
    about = {"domain": run.domain, "task": run.env_name, "seconds": 500, "hardware": hardware}
    (places.results / f"{run.name}.training.json").write_text(json.dumps(about))
    (places.results / f"{run.name}.metrics.jsonl").write_text("")


def test_a_finished_run_is_known_by_its_results(tmp_path: Path, places: Places) -> None:
    plan = plan_of(tmp_path)

    def state() -> str:
        return Observer(places, {}, plan.sweep.name).states(plan.runs)[0].state

    assert state() == "not started"
    leave_results(places, plan, plan.runs[0].steps - 1)
    assert state() == "not started"
    leave_results(places, plan, plan.runs[0].steps)
    assert state() == "done"
    places.run(plan.runs[0].name).mkdir(parents=True)
    (places.results / f"{plan.runs[0].name}.training.json").unlink()
    assert state() == "not started"  # the run is not collected yet


def test_results_of_other_settings_are_not_taken_for_a_run(tmp_path: Path, places: Places) -> None:
    plan = plan_of(tmp_path)
    leave_results(places, plan, plan.runs[0].steps)
    assert other_settings(plan, plan.runs[0], places) == ""
    leave_results(places, plan, plan.runs[0].steps, Hidden=64)
    with pytest.raises(UserError, match=r"Models\.Hidden was 64 and is 512; give the sweep"):
        main([str(write(tmp_path, FILE)), "--local"])
    assert not places.runs.exists()


def test_scores_from_before_a_key_had_the_full_configs_value(
    tmp_path: Path, places: Places
) -> None:
    plan = plan_of(tmp_path)
    leave_results(places, plan, plan.runs[0].steps)
    path = places.results / f"{plan.runs[0].name}.json"
    about = json.loads(path.read_text())
    del about["config"]["Models"]["Agent"]["ClipRatio"]
    path.write_text(json.dumps(about))
    assert other_settings(plan, plan.runs[0], places) == ""
    other = plan_of(tmp_path, overrides={"Models.Agent.ClipRatio": 0.1})
    assert "ClipRatio was 0.2 and is 0.1" in other_settings(other, other.runs[0], places)


def test_a_longer_sweep_may_extend_a_run_but_not_shorten_it(tmp_path: Path, places: Places) -> None:
    plan = plan_of(tmp_path, config="config_files/atari_tiny.yaml")
    leave_results(places, plan, plan.runs[0].steps)
    for budget, allowed in ((40_000, True), (4_000, False)):
        other = plan_of(tmp_path, config="config_files/atari_tiny.yaml", budget=budget)
        assert (other_settings(other, other.runs[0], places) == "") == allowed


def test_speed_comes_from_runs_of_the_same_cost(tmp_path: Path, places: Places) -> None:
    plan = plan_of(tmp_path)
    assert measured_speed(plan, plan.runs[0], places) is None
    leave_results(places, plan, 1000)
    speed = measured_speed(plan, plan.runs[1], places)
    assert speed is not None
    assert (speed.rate, speed.source) == (2.0, "run Pong-seed1 on toy (cpu)")
    leave_results(places, plan, 1000, Hidden=64)
    assert measured_speed(plan, plan.runs[1], places) is None


def test_speed_of_a_run_at_work_is_that_of_its_recorded_steps(
    tmp_path: Path, places: Places
) -> None:
    """It has come further since. A finished run whose folder is still there counts once, and an
    empty config is no config."""
    plan = plan_of(tmp_path)
    first, second, *_ = plan.runs
    for run, times in ((first, "0 1000 10\n"), (second, "0 1000 1000\n")):
        folder = places.run(run.name)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "000009000.pt").touch()
        (folder / "config.yaml").write_text(dump_config(plan.config(run)))
        about = {"domain": run.domain, "hardware": {"name": "toy", "device": "cpu"}}
        (folder / "run.json").write_text(json.dumps(about))
        (folder / "times").write_text(times)
    leave_results(places, plan, 1000)
    speed = measured_speed(plan, second, places)
    assert speed is not None
    assert speed.rate == (2.0 + 1.0) / 2  # 500 s in the results, and 1000 s in the folder
    (places.run(second.name) / "config.yaml").write_text("")
    speed = measured_speed(plan, second, places)
    assert speed is not None
    assert speed.rate == 2.0


def test_disk_is_that_of_weights_optimisers_and_replay(tmp_path: Path) -> None:
    keys = {"config": "config_files/atari_tiny.yaml", "keep": 3}
    plan = plan_of(tmp_path, **keys)
    disk = measured_disk(plan, plan.runs[0])
    replay = plan.runs[0].steps * (64 * 64 * 3 + 8 + 4 + 1 + 1)
    weights = (disk.kept - replay) / 5
    assert disk.training == pytest.approx(10 * weights + replay)
    assert 1e6 < weights < 2e7


def test_a_dry_run_starts_nothing(
    tmp_path: Path, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path, config="config_files/atari_tiny.yaml")
    leave_results(places, plan, plan.runs[0].steps)
    file = write(tmp_path, {**FILE, "config": "config_files/atari_tiny.yaml"})
    main([str(file), "--dry-run", "--local"])
    text = capsys.readouterr().out
    assert "4 runs: 3 not started, 1 done; 3 would be started on this machine" in text
    assert f"time: {3 * 500 / 3600:.3g} hours of training in all" in text
    assert "disk: " in text
    assert not places.runs.exists()
