"""What is kept of a finished run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from sweep.collect import VIDEO_BYTES, collect, downsample
from sweep.places import Places, write_json


def test_metrics_are_averaged_to_fit() -> None:
    records = [
        {
            "step": i + 1,
            "frames": 2 * (i + 1),
            "loss": float(i),
            "gap": None if i % 2 else 4.0,
            "WorldModel/skipped_updates": 3 * (i + 1),
        }
        for i in range(1000)
    ]
    whole = downsample(records, limit=10**6)
    assert [json.loads(line) for line in whole.splitlines()] == records
    small = downsample(records, limit=4000)
    kept = [json.loads(line) for line in small.splitlines()]
    assert 2000 < len(small) <= 4000
    assert kept[-1]["step"] == 1000
    assert all(record["frames"] == 2 * record["step"] for record in kept)
    assert all(record["WorldModel/skipped_updates"] == 3 * record["step"] for record in kept)
    assert all(record["gap"] == 4.0 for record in kept)
    widths = [b["step"] - a["step"] for a, b in itertools.pairwise(kept)]
    assert max(widths) - min(widths) <= 1
    assert kept[0]["loss"] == pytest.approx((kept[0]["step"] - 1) / 2)


def test_what_an_earlier_run_of_the_name_left_is_not_this_runs(tmp_path: Path) -> None:
    places = Places(tmp_path / "ckpt", tmp_path / "eval_result")
    folder = places.run("run")
    folder.mkdir(parents=True)
    places.results.mkdir()
    write_json(folder / "run.json", {"tracker_id": "new"})
    (places.results / "run.metrics.jsonl").write_text("")
    settings = places.results / "run.training.json"
    for tracker, collected in (("old", False), ("new", True)):
        write_json(settings, {"tracker_id": tracker})
        assert places.collected("run") == collected


def test_a_run_that_was_extended_is_collected_again(tmp_path: Path) -> None:
    places = Places(tmp_path / "ckpt", tmp_path / "eval_result")
    weights = places.run("run") / "checkpoints"
    weights.mkdir(parents=True)
    places.results.mkdir()
    write_json(places.run("run") / "run.json", {"tracker_id": "one"})
    (places.run("run") / "metrics.jsonl").write_text('{"step": 100}\n')
    for step in (100, 200):
        (weights / f"{step:09d}.pt").touch()
        assert not places.collected("run")
        collect("run", places)
        assert places.collected("run")


def test_videos_of_an_earlier_training_do_not_stay(tmp_path: Path) -> None:
    """Not even where this one has none of the kind, or one that is too large."""
    places = Places(tmp_path / "ckpt", tmp_path / "eval_result")
    videos = places.run("run") / "videos"
    videos.mkdir(parents=True)
    places.results.mkdir()
    write_json(places.run("run") / "run.json", {"tracker_id": "one"})
    (places.run("run") / "metrics.jsonl").write_text('{"step": 100}\n')
    kinds = ("imagination", "openloop", "evaluation")
    for kind in kinds:
        (places.results / f"run.{kind}.mp4").write_bytes(b"old")
    (videos / "imagination_000000100.mp4").write_bytes(b"new")
    (videos / "openloop_000000100.mp4").write_bytes(bytes(VIDEO_BYTES + 1))
    collect("run", places)
    found = {kind: places.results / f"run.{kind}.mp4" for kind in kinds}
    assert found["imagination"].read_bytes() == b"new"
    assert not found["openloop"].exists()
    assert not found["evaluation"].exists()


def test_scores_of_another_training_are_not_this_runs(tmp_path: Path) -> None:
    """They may have come from another machine while a run of the name was half trained here."""
    places = Places(tmp_path / "ckpt", tmp_path / "eval_result")
    places.results.mkdir()
    (places.results / "run.csv").write_text("step,frames,mean,std\n100,400,1,1\n")
    write_json(places.results / "run.json", {"training": {"tracker_id": "theirs"}})
    assert places.scored("run", 100), "nothing of the run is here"
    places.run("run").mkdir(parents=True)
    for tracker, ours in (("mine", False), ("theirs", True)):
        write_json(places.run("run") / "run.json", {"tracker_id": tracker})
        assert places.scored("run", 100) == ours
