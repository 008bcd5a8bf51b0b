"""The commands as a user types them, on the real emulator, in a clean copy of the source tree."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pwm_core.config_file import load_config
from pwm_core.paths import REPOSITORY
from pwm_core.runs.mp4 import read_video
from pwm_core.runs.tracking import wandb_mode

NAME = "Pong-life_done-pwm-100k"
STEPS = (1000, 1030)
QUICK = (
    "JointTrainAgent={SampleMaxSteps: 1030, BufferWarmUp: 1000, SaveEverySteps: 1000}",
    "JointTrainAgent={VideoLogStep: 1020, LogEverySteps: 5, EvalEnvs: 2, EvalEpisodes: 2}",
)
CONFIG = "config_files/atari_tiny.yaml"
METRICS = {
    "Rollout": ["ALE/Pong-v5_reward"],
    "WorldModel": ["recon_loss", "reward_loss", "dyn_loss", "rep_loss", "real_kl", "vae_ent"],
    "ActorCritic": [
        "value_loss", "policy_loss", "entropy", "scale", "lambda_return", "norm_adv",
    ],
}  # fmt: skip
VIDEOS = ("Observation", "Reconstruction", "Imagination", "Comparison", "OpenLoop")

SERVER = """
import json, os, runpy, signal, sys, traceback
sys.path.insert(0, os.getcwd())
import torch._dynamo, pwm_atari.train
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    code = 0
    signal.alarm(120)
    open(job["output"] + "modules", "w").close()
    try:
        for number, name in (1, "stdout"), (2, "stderr"):
            os.dup2(os.open(job["output"] + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(job["cwd"])
        os.environ.update(job["environ"])
        sys.argv = [job["script"], *job["argv"]]
        runpy.run_path(job["script"], run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    with open(job["output"] + "modules", "w") as file:
        file.write(" ".join(sys.modules))
    sys.stdout.flush(), sys.stderr.flush(), os._exit(code)
"""
"""Runs scripts in forked children, which spares each of them seconds of imports."""


@dataclass
class Result:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str
    modules: set[str] = field(default_factory=set)

    def succeeded(self) -> Result:
        assert self.status == 0, self.stderr[-3000:]
        assert "Traceback" not in self.stderr
        assert "Warning" not in self.stderr
        return self


def flags(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("-set", override)]


def environment(home: Path) -> dict[str, str]:
    """Ours without a trace of wandb, and a home without a key."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "PYTHON", "NETRC"))}
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"}


class Tree:
    """A clone of the source tree with a commit of its own, where runs touch nothing else."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home = folder / "tree", folder
        for name in ("pwm_core", "pwm_atari", "pwm_dmc", "config_files"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, self.root / name, ignore=ignore)
        git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
        for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "A clone"]):
            subprocess.run([*git, *arguments], cwd=self.root, check=True, env=environment(folder))
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=self.root, capture_output=True)
        self.commit = head.stdout.decode().strip()
        self._server = subprocess.Popen(
            [sys.executable, "-u", "-O", "-c", SERVER],
            cwd=self.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(folder),
        )  # fmt: skip

    def run(self, *arguments: str, cwd: str = ".") -> Result:
        """``python -u -O ARGUMENTS`` in a process of its own, from a folder of the tree."""
        done = subprocess.run(
            [sys.executable, "-u", "-O", *arguments],
            cwd=self.root / cwd, env=environment(self.home), capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    def call(self, script: str, *argv: str, cwd: Path | None = None, **environ: str) -> Result:
        """The same in a fork of a process that has imported torch already."""
        output = f"{self.home}/output."
        job = {
            "script": str(self.root / script), "argv": argv, "output": output,
            "cwd": str(cwd or self.root), "environ": environ,
        }  # fmt: skip
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        stdout, stderr, modules = (
            Path(output + name).read_text() for name in ("stdout", "stderr", "modules")
        )
        return Result(status, stdout, stderr, set(modules.split()))

    def train(self, *argv: str, **options: Any) -> Result:
        return self.call("pwm_atari/train.py", *argv, **options)

    def evaluate(self, *argv: str, **options: Any) -> Result:
        return self.call("pwm_atari/eval.py", *argv, **options)

    def folder(self, name: str) -> Path:
        return self.root / "ckpt" / name

    def records(self, name: str) -> list[dict[str, float]]:
        lines = (self.folder(name) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def scores(self, name: str) -> tuple[list[str], list[list[float]], dict[str, Any]]:
        """Header and rows of the CSV, and the JSON beside it."""
        path = self.root / "eval_result" / f"{name}.csv"
        with open(path, newline="") as file:
            header, *rows = csv.reader(file)
        about = json.loads(path.with_suffix(".json").read_text())
        return header, [[float(cell) for cell in row] for row in rows], about

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=30)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    made = Tree(tmp_path_factory.mktemp("cli"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def trained(tree: Tree) -> Result:
    """The README's command from inside the domain folder, its loggers the default ones."""
    return tree.run(
        "train.py", "-n", NAME, "-seed", "1", "-config_path", CONFIG, "-env_name", "ALE/Pong-v5",
        "-device", "cpu", *flags(*QUICK), cwd="pwm_atari",
    ).succeeded()  # fmt: skip


@pytest.fixture(scope="module")
def trained_from_root(tree: Tree) -> Result:
    """The same run again, from the root, into TensorBoard."""
    return tree.run(
        "pwm_atari/train.py", "-n", "again", "-seed", "1", "-config_path", CONFIG, "-env_name",
        "ALE/Pong-v5", "-device", "cpu", "-logger", "tensorboard", *flags(*QUICK),
    ).succeeded()  # fmt: skip


# ---------------------------------------------------------------------------------------- training


def test_train_says_what_it_does(tree: Tree, trained: Result) -> None:
    lines = trained.stdout.splitlines()
    assert re.match(r"training ALE/Pong-v5 on cpu, seed 1\b.*" + NAME, lines[0])
    assert sum("offline" in line for line in lines) == 1
    assert lines[-1].startswith("done: 1030 steps")
    bar = trained.stderr.replace("\r", "\n").splitlines()[-1]
    assert re.search(r"1030/1030 \[\d+:\d+<\d+:\d+, +[\d.]+(step/s|s/step), return -\d+\]", bar)


def test_run_folder(tree: Tree, trained: Result) -> None:
    folder = tree.folder(NAME)
    expected = load_config(
        CONFIG, defaults="config_files/atari.yaml", overrides=[*QUICK, "BasicSettings.Seed=1"]
    )
    assert load_config(folder / "config.yaml") == expected
    about = json.loads((folder / "run.json").read_text())
    assert (about["task"], about["seed"], about["commit"]) == ("ALE/Pong-v5", 1, tree.commit)
    assert about["protocol"]["name"] == "pamorl"
    assert about["versions"]["torch"] == torch.__version__
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {f"{step:09d}.pt" for step in STEPS}
    assert not (tree.root / "pwm_atari" / "ckpt").exists()


def test_metric_names(tree: Tree, trained: Result) -> None:
    records = tree.records(NAME)
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))
    expected = {f"{group}/{name}" for group, names in METRICS.items() for name in names}
    assert expected <= {name for record in records for name in record}


def test_same_seed_same_metrics(tree: Tree, trained: Result, trained_from_root: Result) -> None:
    """Two processes, two folders, two loggers: one course of events."""
    assert tree.records(NAME) == tree.records("again")


def read_wandb(path: Path) -> list[Any]:
    """The records of an offline run, decoded by wandb's own messages. Its file is a LevelDB log:
    blocks of 32 KiB hold chunks of CRC, length, kind (1 whole, 2 first, 3 middle, 4 last) and data.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, records, parts = path.read_bytes(), 7, [], b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + 7 : position + 7 + length]
        assert zlib.crc32(data[position + 6 : position + 7] + chunk) == crc
        position += 7 + length
        parts += chunk
        if kind in (1, 4):
            records.append(Record.FromString(parts))
            parts = b""
    return records


def test_offline_wandb_run_holds_the_metrics(tree: Tree, trained: Result) -> None:
    (path,) = tree.folder(NAME).glob("wandb/offline-run-*/*.wandb")
    history: dict[int, dict[str, float]] = {}
    videos, config, group = [], {}, ""
    for record in read_wandb(path):
        if record.HasField("run"):
            group = record.run.run_group
            config |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
        if record.HasField("history"):
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            videos += [key for key in row if key.startswith("Video/") and key.endswith("/path")]
            scalars = {k: v for k, v in row.items() if not k.startswith(("_", "Video/"))}
            history.setdefault(int(row["step"]), {}).update(scalars)
    logged = {int(record["step"]): record for record in tree.records(NAME)}
    assert {step: row for step, row in history.items() if len(row) > 1} == logged
    assert sorted(videos) == sorted(f"Video/{name}/path" for name in VIDEOS)
    assert (config["seed"], config["task"], group) == (1, "ALE/Pong-v5", "ALE/Pong-v5")
    assert config["Models"]["Hidden"] == 128
    assert config["BasicSettings"]["Seed"] == 1
    assert "config" not in config, "sections stand beside the metadata, not below it"
    assert f"wandb sync {path.parent}" in trained.stdout


def test_tensorboard_holds_the_metrics(tree: Tree, trained_from_root: Result) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        str(tree.folder("again") / "tensorboard"), {"scalars": 0, "tensors": 0}
    )
    events.Reload()
    logged = tree.records("again")
    names = {name for record in logged for name in record} - {"step"}
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert read == [
            (record["step"], pytest.approx(record[name], rel=1e-6))
            for record in logged
            if name in record
        ]
    assert set(events.Tags()["images"]) == {f"Video/{name}" for name in VIDEOS}
    assert not (tree.folder("again") / "wandb").exists()
    (text,) = events.Tensors("config/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert "      Hidden: 128\n" in shown


@pytest.mark.parametrize(("name", "frames"), [*zip(VIDEOS, (16, 16, 11, 11, 16), strict=True)])
def test_videos_decode(name: str, frames: int, tree: Tree, trained: Result) -> None:
    """T replayed steps of four sequences side by side; horizon + 1 imagined ones. What compares has
    three rows of them."""
    path = tree.folder(NAME) / "videos" / f"{name.lower()}_000001020.mp4"
    video = read_video(path)[0]
    rows = 3 if name in ("Comparison", "OpenLoop") else 1
    assert video.shape == (frames, rows * 64, 4 * 64, 3)
    if name == "Observation":  # Pong's court is brown: its colour survives the codec
        court = np.median(video.reshape(-1, 3), axis=0)
        assert np.abs(court - (144, 72, 17)).max() < 12


def test_without_a_logger_none_is_imported(tree: Tree, trained: Result, tmp_path: Path) -> None:
    """And another seed is another course of events; started from somewhere else altogether."""
    done = tree.train(
        "-n", "silent", "-seed", "2", "-config_path", CONFIG, "-env_name", "ALE/Pong-v5",
        "-device", "cpu", "-logger", "none", *flags(*QUICK, "JointTrainAgent.VideoLogStep=9999"),
        cwd=tmp_path,
    ).succeeded()  # fmt: skip
    loaded = {name.partition(".")[0] for name in done.modules}
    assert not loaded & {"wandb", "tensorboard", "av", "matplotlib", "dm_control"}
    assert "ale_py" in loaded
    left = {path.name for path in tree.folder("silent").iterdir()}
    files = {"config.yaml", "run.json", "metrics.jsonl", "lock"}
    assert left == files | {"checkpoints", "resume", "replay"}
    assert not list(tmp_path.iterdir())
    ours, other = tree.records("silent"), tree.records(NAME)
    assert ours[-1]["WorldModel/recon_loss"] != other[-1]["WorldModel/recon_loss"]


@pytest.mark.parametrize(
    ("environ", "netrc", "mode"),
    [
        ({}, None, "offline"),
        ({"WANDB_API_KEY": "x" * 40}, None, "online"),
        ({}, "machine api.wandb.ai login user password secret", "online"),
        ({}, "machine example.org login user password secret", "offline"),
        ({"WANDB_BASE_URL": "https://example.org"}, "machine example.org login u password p",
         "online"),
        ({"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}, None, "offline"),
    ],
)  # fmt: skip
def test_wandb_is_online_with_a_key_only(
    environ: dict[str, str], netrc: str | None, mode: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in [name for name in os.environ if name.startswith(("WANDB", "NETRC"))]:
        monkeypatch.delenv(name)
    for name, value in ({"HOME": str(tmp_path)} | environ).items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        (tmp_path / ".netrc").write_text(netrc)
        (tmp_path / ".netrc").chmod(0o600)
    assert wandb_mode() == mode


# -------------------------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def evaluated(tree: Tree, trained: Result) -> Result:
    """The README's command from inside the domain folder."""
    return tree.run(
        "eval.py", "-env_name", "ALE/Pong-v5", "-run_name", NAME, "-config_path", CONFIG,
        "-device", "cpu", "-seed", "1", cwd="pwm_atari",
    ).succeeded()  # fmt: skip


def check_row(row: Sequence[float], step: int, episodes: int) -> None:
    assert row[:2] == [step, 4 * step]
    returns = row[4:]
    assert len(returns) == episodes
    assert all(-21 <= value <= 21 and value == int(value) for value in returns)
    assert row[2:4] == pytest.approx([np.mean(returns), np.std(returns)], rel=1e-4)


def test_eval_writes_scores_and_where_they_come_from(tree: Tree, evaluated: Result) -> None:
    header, rows, about = tree.scores(NAME)
    assert header == ["step", "frames", "mean", "std", *(f"return_{i}" for i in range(2))]
    assert len(rows) == 1
    check_row(rows[0], STEPS[-1], 2)
    assert (about["task"], about["protocol"], about["seed"]) == ("ALE/Pong-v5", "pamorl", 1)
    assert (about["episodes"], about["envs"], about["greedy"]) == (2, 2, False)
    assert about["commit"] == tree.commit
    assert about["training"]["seed"] == 1
    assert about["versions"]["ale-py"]
    assert about["protocol_settings"]["repeat_action_probability"] == 0.25
    expected = load_config(tree.folder(NAME) / "config.yaml")
    assert about["config"] == json.loads(expected.model_dump_json())
    mean = f"{rows[0][2]:.2f}"
    error = f"{np.std(rows[0][4:], ddof=1) / np.sqrt(2):.2f}"
    assert f"mean return {mean} +- {error} " in evaluated.stdout
    assert "2/2" in evaluated.stderr
    assert str(tree.root / "eval_result" / f"{NAME}.csv") in evaluated.stdout


@pytest.mark.slow
def test_eval_from_the_root_in_a_process_of_its_own(tree: Tree, evaluated: Result) -> None:
    """The same checkpoint and seed: the same row, in place of the other."""
    _, before, _ = tree.scores(NAME)
    tree.run("pwm_atari/eval.py", "-n", NAME, "-device", "cpu").succeeded()
    assert tree.scores(NAME)[1] == before


@pytest.mark.slow
def test_eval_of_all_checkpoints_and_of_one(tree: Tree, evaluated: Result) -> None:
    _, (last,), _ = tree.scores(NAME)
    tree.evaluate("-n", NAME, "-device", "cpu", "-checkpoint", "1000").succeeded()
    assert [row[0] for row in tree.scores(NAME)[1]] == [*STEPS]
    done = tree.evaluate("-n", NAME, "-device", "cpu", "-checkpoint", "all").succeeded()
    _, rows, _ = tree.scores(NAME)
    assert done.stdout.count("mean return") == 2
    assert rows[-1] == last
    for row, step in zip(rows, STEPS, strict=True):
        check_row(row, step, 2)


@pytest.mark.slow
def test_eval_with_other_settings_has_a_file_of_its_own(tree: Tree, evaluated: Result) -> None:
    before = tree.scores(NAME)
    done = tree.evaluate(
        "-n", NAME, "-device", "cpu", "-episodes", "1", "-greedy", "-seed", "7",
        *flags("BasicSettings.Protocol=standard"),
    ).succeeded()  # fmt: skip
    name = f"{NAME}--greedy-1ep-seed7-standard"
    header, rows, about = tree.scores(name)
    assert header == ["step", "frames", "mean", "std", "return_0"]
    check_row(rows[0], STEPS[-1], 1)
    assert (about["protocol"], about["seed"], about["greedy"]) == ("standard", 7, True)
    assert about["protocol_settings"]["noop_max"] == 30
    assert f"{name}.csv" in done.stdout
    assert "1 episode, " in done.stdout
    assert tree.scores(NAME) == before


@pytest.mark.slow
def test_what_the_project_writes_is_no_change_of_the_code(tree: Tree) -> None:
    """Scores and reports are tracked; a run after ``python -m results`` is not a dirty one."""

    def commit() -> str:
        code = "from pwm_core.runtime import git_commit; print(git_commit())"
        return tree.run("-c", code).succeeded().stdout.strip()

    assert commit() == tree.commit
    for name in ("eval_result/report/report.md", "benchmarks/results/scan.json"):
        path = tree.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new")
        subprocess.run(["git", "add", "-f", name], cwd=tree.root, check=True)
    assert commit() == tree.commit
    path = tree.root / "pwm_core" / "errors.py"
    content = path.read_text()
    path.write_text(content + "\n")
    assert commit() == f"{tree.commit}-dirty"
    path.write_text(content)
    subprocess.run(["git", "reset", "-q"], cwd=tree.root, check=True)


# --------------------------------------------------------------------------------------- bad input

OK_RUN = (
    "-n", "fresh", "-env_name", "ALE/Pong-v5", "-device", "cpu", "-logger", "none",
    *flags("JointTrainAgent={SampleMaxSteps: 65, BufferWarmUp: 64}"),
)  # fmt: skip
"""A command that would end well, and soon."""
BAD_TRAIN: dict[str, tuple[list[str], list[str]]] = {
    "missing config": (
        ["-config_path", "config_files/atary.yaml"],
        ["config_files/atary.yaml", "config_files/atari.yaml"],
    ),
    "config is a folder": (["-config_path", "config_files"], ["config_files"]),
    "unknown key": (
        flags("Models.WorldModel.Stemm=1"),
        ["-set Models.WorldModel.Stemm=1", "unknown key", "'Stem'"],
    ),
    "wrong type": (flags("Models.Gamma=high"), ["Models.Gamma = 'high'", "valid number"]),
    "impossible value": (flags("Models.Gamma=1"), ["Models.Gamma = 1", "less than 1"]),
    "scan that needs a GPU": (
        flags("Models.WorldModel.Scan=triton"),
        ["Models.WorldModel.Scan: triton needs", "-set Models.WorldModel.Scan=chunked"],
    ),
    "impossible together": (
        flags("JointTrainAgent.ImagineContext=65"),
        ["JointTrainAgent.ImagineContext", "at most BatchLength = 64"],
    ),
    "not an override": (flags("Models.Gamma"), ["Models.Gamma", "Section.Key=value"]),
    "unknown game": (["-env_name", "ALE/Pnog-v5"], ["'ALE/Pnog-v5'", "'ALE/Pong-v5'"]),
    "unknown protocol": (flags("BasicSettings.Protocol=x"), ["Protocol", "pamorl or standard"]),
    "vectors of a game": (flags("BasicSettings.ObsType=proprio"), ["ObsType", "visual"]),
    "unknown device": (["-device", "tpu"], ["-device tpu", "cpu", "cuda"]),
    "device number": (["-device", "cuda:x"], ["-device cuda:x"]),
    "empty device": (["-device", ""], ["-device"]),
    "unknown logger": (["-logger", "wandb,mlflow"], ["'mlflow'", "wandb, tensorboard", "none"]),
    "unknown flag": (["-sead", "3"], ["unknown flag -sead", "'-seed'"]),
    "a flag glued to a name": (["-noresume"], ["unknown flag -noresume"]),
    "config without a name": (["-config_path", ""], ["-config_path", "YAML file is needed"]),
    "a task of another domain": (["-env_name", "walker_walk"], ["it is a task of pwm_dmc/"]),
    "a config of another domain": (
        [
            "-config_path",
            "config_files/dmc_tiny.yaml",
            *flags("JointTrainAgent={BufferWarmUp: 256, SampleMaxSteps: 300}"),
        ],
        ["'suite'", "config_files/dmc_tiny.yaml is a config of pwm_dmc/"],
    ),
    "an action held for long": (flags("BasicSettings.FrameSkip=1000"), ["FrameSkip", "at most"]),
    "too many environments": (
        flags(
            "JointTrainAgent={NumEnvs: 10000000, BufferWarmUp: 640000000}",
            "JointTrainAgent={SampleMaxSteps: 650000000, BufferMaxLength: 650000000}",
        ),
        ["JointTrainAgent.NumEnvs = 10000000 is too many", "GB"],
    ),
    "networks too large": (flags("Models.Hidden=300000"), ["networks", "lower Models.Hidden"]),
    "seed is a word": (["-seed", "one"], ["-seed", "one"]),
    "negative seed": (["-seed", "-1"], ["-seed", "-1 is not a whole number"]),
    "name with a slash": (["-n", "a/b"], ["'a/b'", "letters, digits"]),
    "name is the parent": (["-n", ".."], ["'..'"]),
    "empty name": (["-n", ""], ["''"]),
    "name with a newline": (["-n", "a\nb"], [r"'a\nb'"]),
    "name too long": (["-n", "x" * 300], ["x" * 20]),
    "name too long in bytes": (["-n", "ü" * 120], ["ü" * 20, "200 bytes at most"]),
    "name of a score file": (["-n", "Pong--greedy"], ["'Pong--greedy'", "no '--'"]),
    "name exists": (["-n", NAME], [NAME, "exists already"]),
    "replay too large": (
        flags("JointTrainAgent={BufferMaxLength: 1000000000000, BufferStorage: memory}"),
        ["JointTrainAgent.BufferMaxLength", "GB"],
    ),
}
BAD_EVAL: dict[str, tuple[list[str], list[str]]] = {
    "no such run": (["-n", NAME.replace("Pong", "Pnog")], ["no run named", f"'{NAME}'"]),
    "name with a slash": (["-n", "../ckpt"], ["'../ckpt'"]),
    "no such checkpoint": (["-checkpoint", "7"], ["-checkpoint 7", "1000, 1030"]),
    "not a checkpoint": (["-checkpoint", "newest"], ["-checkpoint newest", "last, all"]),
    "not a digit": (["-checkpoint", "²"], ["-checkpoint ²", "last, all"]),
    "no episodes": (["-episodes", "0"], ["-episodes", "0 is not a whole number from 1 on"]),
    "episodes is a word": (["-episodes", "many"], ["-episodes", "many"]),
    "another game": (["-env_name", "ALE/Boxing-v5"], ["ALE/Pong-v5", "ALE/Boxing-v5"]),
    "unknown game": (["-env_name", "Pnog"], ["'Pnog'"]),
    "missing config": (["-config_path", "nope.yaml"], ["nope.yaml"]),
    "unknown key": (flags("Models.Gama=1"), ["Models.Gama", "'Gamma'"]),
    "another size": (flags("Models.Hidden=64"), ["Models.Hidden was 128 and is 64"]),
    "another network": (
        flags("Models.WorldModel.PosteriorNorm=false"),
        ["Models.WorldModel.PosteriorNorm was True and is False"],
    ),
    "unknown flag": (["-logger", "none"], ["-logger"]),
    "a flag cut short": (["-check", "last"], ["unknown flag -check", "'-checkpoint'"]),
}


def check_refusal(result: Result, says: list[str]) -> None:
    """One clear line on stderr, a non-zero status, no traceback."""
    assert result.status == 2, result.stderr[-2000:]
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in result.stdout
    assert len(line) < 600
    for text in says:
        assert text in line


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_train_refuses(case: str, tree: Tree, trained: Result) -> None:
    """And leaves no run behind: the corrected command may use the name."""
    argv, says = BAD_TRAIN[case]
    before = sorted(tree.root.glob("ckpt/*"))
    check_refusal(tree.train(*OK_RUN, *argv), says)
    assert sorted(tree.root.glob("ckpt/*")) == before


@pytest.mark.parametrize("case", BAD_EVAL)
def test_eval_refuses(case: str, tree: Tree, evaluated: Result) -> None:
    argv, says = BAD_EVAL[case]
    before = {path: path.read_bytes() for path in tree.root.glob("eval_result/*.*")}
    check_refusal(tree.evaluate("-n", NAME, "-device", "cpu", *argv), says)
    assert {path: path.read_bytes() for path in tree.root.glob("eval_result/*.*")} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_without_a_device(device: str, tree: Tree, trained: Result) -> None:
    for result in (
        tree.train(*OK_RUN, "-device", device),
        tree.evaluate("-n", NAME, "-device", device),
    ):
        check_refusal(result, [f"-device {device}", "-device cpu"])


def test_unusable_wandb_is_refused(tree: Tree, trained: Result) -> None:
    before = sorted(tree.root.glob("ckpt/*"))
    result = tree.train(*OK_RUN, "-logger", "wandb", WANDB_MODE="nonsense")
    check_refusal(result, ["WANDB_MODE"])
    assert sorted(tree.root.glob("ckpt/*")) == before


@pytest.mark.parametrize(
    ("script", "argv", "missing"),
    [
        ("train", ["-n", "fresh"], "-env_name"),
        ("train", ["-env_name", "ALE/Pong-v5"], "-n"),
        ("eval", [], "-n"),
    ],
)
def test_missing_flag(script: str, argv: list[str], missing: str, tree: Tree) -> None:
    check_refusal(tree.call(f"pwm_atari/{script}.py", *argv), [missing, "required"])


@pytest.mark.parametrize("script", ["train", "eval"])
@pytest.mark.parametrize(
    "argv",
    [["-sead", "3"], ["-seed", "x"], [], ["-set", "Models.Gama=1", "-n", "a", "-env_name", "b"]],
)
def test_a_wrong_flag_is_told_before_torch_is_imported(
    script: str, argv: list[str], tree: Tree
) -> None:
    """In less than twice the time of the libraries that read a config, whatever the machine.

    An evaluation's overrides need the run first.
    """
    if script == "eval" and "-set" in argv:
        return

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = tree.run("-X", "importtime", *command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert not re.search(r"\| +(torch|numpy|gymnasium)$", result.stderr, re.M)
        assert result.status == (0 if command[0] == "-c" else 2)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    libraries = "import argparse, yaml, pydantic; pydantic.create_model('Section', Key=(int, 1))"
    turns = [(seconds(f"pwm_atari/{script}.py", *argv), seconds("-c", libraries)) for _ in range(3)]
    ours, theirs = (min(times) for times in zip(*turns, strict=True))
    assert ours < 2 * theirs


def test_a_process_of_its_own_refuses_alike(tree: Tree) -> None:
    result = tree.run("train.py", "-n", "fresh", "-env_name", "ALE/Pnog-v5", cwd="pwm_atari")
    check_refusal(result, ["'ALE/Pong-v5'"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Models: {Hiden: 512}", ["mine.yaml", "Models.Hiden", "'Hidden'"]),
        ("Models: {Hidden: wide}", ["mine.yaml", "Models.Hidden", "'wide'"]),
        ("Models: {Hidden: 0}", ["mine.yaml", "Models.Hidden", "greater than or equal to 1"]),
        ("Models: {Hidden: 512", ["mine.yaml", "not valid YAML"]),
        ("just words", ["mine.yaml", "sections"]),
    ],
)
def test_bad_config_file(content: str, says: list[str], tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    result = tree.train(*OK_RUN, "-config_path", "mine.yaml", cwd=tmp_path)
    check_refusal(result, says)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("checkpoints/000001030.pt", b"", ["000001030.pt"]),
        ("checkpoints/000001030.pt", b"not an archive", ["000001030.pt"]),
        ("checkpoints/000001030.pt", None, ["000001030.pt"]),
        ("run.json", b"{", ["run.json"]),
        ("run.json", b"{}", ["run.json"]),
        ("run.json", b"[]", ["run.json"]),
        ("config.yaml", b"Models: {", ["config.yaml"]),
        ("config.yaml", ("Hidden: 128", "Hidden: 64"), ["000001030.pt"]),
    ],
)
def test_damaged_run(
    file: str, content: bytes | tuple | None, says: list[str], tree: Tree, trained: Result
) -> None:
    """``None``: cut in half, as by a full disk; a pair: one text in place of another."""
    shutil.copytree(tree.folder(NAME), tree.folder("damaged"), dirs_exist_ok=True)
    path = tree.folder("damaged") / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text(path.read_text().replace(*content))
    try:
        check_refusal(tree.evaluate("-n", "damaged", "-device", "cpu"), says)
    finally:
        shutil.rmtree(tree.folder("damaged"))


def test_run_without_a_checkpoint(tree: Tree, trained: Result) -> None:
    shutil.copytree(tree.folder(NAME), tree.folder("young"))
    shutil.rmtree(tree.folder("young") / "checkpoints")
    check_refusal(tree.evaluate("-n", "young", "-device", "cpu"), ["young", "no checkpoint"])


def test_help_lists_the_flags(tree: Tree) -> None:
    published = ["-n", "-seed", "-config_path", "-env_name", "-device", "-set"]
    for script, more in (("train", ["-logger"]), ("eval", ["-episodes", "-checkpoint", "-greedy"])):
        result = tree.call(f"pwm_atari/{script}.py", "-h")
        assert (result.status, result.stderr) == (0, "")
        assert all(re.search(rf"(?m)^ +{flag}\b|, {flag}\b", result.stdout) for flag in more)
        assert all(f"{flag} " in result.stdout for flag in published)


def test_no_check_depends_on_assert() -> None:
    """``python -O`` strips them."""
    found = [
        f"{path}:{node.lineno}"
        for path in REPOSITORY.glob("pwm_*/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert not found


def test_config_of_a_run_is_plain_yaml(tree: Tree, trained: Result) -> None:
    content = yaml.safe_load((tree.folder(NAME) / "config.yaml").read_text())
    assert content["BasicSettings"]["Seed"] == 1
    assert content["JointTrainAgent"]["SampleMaxSteps"] == 1030
