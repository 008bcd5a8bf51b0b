"""``train.py`` as a user types it, on the real emulator, in a clone of the source tree."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pwm_core.config_file import load_config
from pwm_core.runs.mp4 import read_video
from pwm_core.runs.tracking import wandb_mode
from tests.commands.clone import CONFIG, NAME, QUICK, STEPS, Clone, Result, flags
from tests.helpers_wandb import read_wandb

METRICS = {
    "Rollout": ["ALE/Pong-v5_reward"],
    "WorldModel": ["recon_loss", "reward_loss", "dyn_loss", "rep_loss", "real_kl", "vae_ent"],
    "ActorCritic": [
        "value_loss", "policy_loss", "entropy", "scale", "lambda_return", "norm_adv",
    ],
}  # fmt: skip
VIDEOS = ("Observation", "Reconstruction", "Imagination", "Comparison", "OpenLoop")


@pytest.fixture(scope="module")
def trained_from_root(clone: Clone) -> Result:
    """The same run again, from the root, into TensorBoard."""
    return clone.run(
        "pwm_atari/train.py", "-n", "again", "-seed", "1", "-config_path", CONFIG, "-env_name",
        "ALE/Pong-v5", "-device", "cpu", "-logger", "tensorboard", *flags(*QUICK),
    ).succeeded()  # fmt: skip


def test_train_says_what_it_does(clone: Clone, trained: Result) -> None:
    lines = trained.stdout.splitlines()
    assert re.match(r"training ALE/Pong-v5 on cpu, seed 1\b.*" + NAME, lines[0])
    assert sum("offline" in line for line in lines) == 1
    assert lines[-1].startswith("done: 1030 steps")
    bar = trained.stderr.replace("\r", "\n").splitlines()[-1]
    assert re.search(r"1030/1030 \[\d+:\d+<\d+:\d+, +[\d.]+(step/s|s/step), return -\d+\]", bar)


def test_run_folder(clone: Clone, trained: Result) -> None:
    folder = clone.folder(NAME)
    expected = load_config(
        CONFIG, defaults="config_files/atari.yaml", overrides=[*QUICK, "BasicSettings.Seed=1"]
    )
    assert load_config(folder / "config.yaml") == expected
    about = json.loads((folder / "run.json").read_text())
    assert (about["task"], about["seed"], about["commit"]) == ("ALE/Pong-v5", 1, clone.commit)
    assert about["protocol"]["name"] == "pamorl"
    assert about["versions"]["torch"] == torch.__version__
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {f"{step:09d}.pt" for step in STEPS}
    assert not (clone.root / "pwm_atari" / "ckpt").exists()


def test_config_of_a_run_is_plain_yaml(clone: Clone, trained: Result) -> None:
    content = yaml.safe_load((clone.folder(NAME) / "config.yaml").read_text())
    assert content["BasicSettings"]["Seed"] == 1
    assert content["JointTrainAgent"]["SampleMaxSteps"] == 1030


def test_metric_names(clone: Clone, trained: Result) -> None:
    records = clone.records(NAME)
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))
    expected = {f"{group}/{name}" for group, names in METRICS.items() for name in names}
    assert expected <= {name for record in records for name in record}


def test_same_seed_same_metrics(clone: Clone, trained: Result, trained_from_root: Result) -> None:
    """Two processes, two folders, two loggers: one course of events."""
    assert clone.records(NAME) == clone.records("again")


def test_offline_wandb_run_holds_the_metrics(clone: Clone, trained: Result) -> None:
    path = min(clone.folder(NAME).glob("wandb/offline-run-*/*.wandb"))  # an evaluation adds one
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
    logged = {int(record["step"]): record for record in clone.records(NAME)}
    assert {step: row for step, row in history.items() if len(row) > 1} == logged
    assert sorted(videos) == sorted(f"Video/{name}/path" for name in VIDEOS)
    assert (config["seed"], config["task"], group) == (1, "ALE/Pong-v5", "ALE/Pong-v5")
    assert config["Models"]["Hidden"] == 128
    assert config["BasicSettings"]["Seed"] == 1
    assert "config" not in config, "sections stand beside the metadata, not below it"
    assert f"wandb sync {path.parent}" in trained.stdout


def test_tensorboard_holds_the_metrics(clone: Clone, trained_from_root: Result) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        str(clone.folder("again") / "tensorboard"), {"scalars": 0, "tensors": 0}
    )
    events.Reload()
    logged = clone.records("again")
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
    assert not (clone.folder("again") / "wandb").exists()
    (text,) = events.Tensors("config/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert "      Hidden: 128\n" in shown


@pytest.mark.parametrize(("name", "frames"), [*zip(VIDEOS, (16, 16, 11, 11, 16), strict=True)])
def test_videos_decode(name: str, frames: int, clone: Clone, trained: Result) -> None:
    """T replayed steps of four sequences side by side; horizon + 1 imagined ones. What compares has
    three rows of them."""
    path = clone.folder(NAME) / "videos" / f"{name.lower()}_000001020.mp4"
    video = read_video(path)[0]
    rows = 3 if name in ("Comparison", "OpenLoop") else 1
    assert video.shape == (frames, rows * 64, 4 * 64, 3)
    if name == "Observation":  # Pong's court is brown: its colour survives the codec
        court = np.median(video.reshape(-1, 3), axis=0)
        assert np.abs(court - (144, 72, 17)).max() < 12


def test_without_a_logger_none_is_imported(clone: Clone, trained: Result, tmp_path: Path) -> None:
    """And another seed is another course of events; started from somewhere else altogether."""
    done = clone.train(
        "-n", "silent", "-seed", "2", "-config_path", CONFIG, "-env_name", "ALE/Pong-v5",
        "-device", "cpu", "-logger", "none", *flags(*QUICK, "JointTrainAgent.VideoLogStep=9999"),
        cwd=tmp_path,
    ).succeeded()  # fmt: skip
    loaded = {name.partition(".")[0] for name in done.modules}
    assert not loaded & {"wandb", "tensorboard", "av", "matplotlib", "dm_control"}
    assert "ale_py" in loaded
    left = {path.name for path in clone.folder("silent").iterdir()}
    files = {"config.yaml", "run.json", "metrics.jsonl", "lock"}
    assert left == files | {"checkpoints", "resume", "replay"}
    assert not list(tmp_path.iterdir())
    ours, other = clone.records("silent"), clone.records(NAME)
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
