"""A damaged checkpoint is passed over or refused, and what it holds is never run as code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pwm_core.errors import UserError
from pwm_core.runs.checkpoint import _digest
from pwm_core.runs.files import sha256, write_text
from pwm_core.runs.run_folder import RunFolder
from tests.helpers_counting import QUICK, damage, interrupted
from tests.helpers_envs import counting_domain
from tests.helpers_runs import (
    assert_same_run,
    evaluate_run,
    folder,
    train_counting,
)

pytestmark = pytest.mark.usefixtures("logdir")


OF_POINT = {
    "state": "resume/{0:09d}.pt",
    "manifest": "resume/{0:09d}.json",
    "weights": "checkpoints/{0:09d}.pt",
}


@pytest.mark.parametrize("how", ["cut", "flip", "gone"])
@pytest.mark.parametrize("what", ["state", "weights", "chunk", "manifest"])
def test_the_point_before_serves(
    what: str, how: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = interrupted() / {**OF_POINT, "chunk": "replay/000000020-000000040.pt"}[what].format(40)
    damage(path, how)
    train_counting("run", "-resume", overrides=QUICK)
    said = capsys.readouterr().out
    assert "continuing from step 20:" in said
    if (what, how) != ("manifest", "gone"):  # then no trace of that point is left
        assert "warning: the checkpoint of step 40 is passed over: " in said
        assert path.name in said
    assert_same_run(whole, folder("run"))


@pytest.mark.parametrize("what", [*OF_POINT, "chunk"])
def test_nothing_whole_is_one_line(what: str) -> None:
    """A chunk that both points share is enough."""
    run = interrupted()
    names = [OF_POINT[what].format(step) for step in (20, 40)] if what in OF_POINT else []
    for name in names or ["replay/000000000-000000020.pt"]:
        damage(run / name, "flip")
    before = {path: path.read_bytes() for path in run.rglob("*.*")}
    with pytest.raises(
        UserError, match="there is no undamaged checkpoint to continue from"
    ) as raised:
        train_counting("run", "-resume", overrides=QUICK)
    assert "\n" not in str(raised.value)
    assert "damaged" in str(raised.value)
    assert {path: path.read_bytes() for path in run.rglob("*.*")} == before


def test_a_run_that_lost_its_points_does_not_begin_over_what_is_left() -> None:
    run = interrupted()
    for path in run.glob("resume/*.json"):
        path.unlink()
    metrics = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"got to step 40, but .* holds nothing to continue from"):
        train_counting("run", "-resume", overrides=QUICK)
    assert (run / "metrics.jsonl").read_bytes() == metrics


class Code:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


def rewrite_manifest(run: Path, step: int) -> None:
    """Make every checksum right again, as an attacker would."""
    path = run / "resume" / f"{step:09d}.json"
    point = json.loads(path.read_text())["point"]
    point["files"] = {name: sha256(run / name) for name in point["files"]}
    point["chunks"] = [
        [first, last, sha256(run / f"replay/{first:09d}-{last:09d}.pt")]
        for first, last, _ in point["chunks"]
    ]
    write_text(path, json.dumps({"point": point, "sha256": _digest(point)}))


@pytest.mark.parametrize("what", ["state", "weights", "chunk"])
def test_code_in_a_checkpoint_does_not_run(what: str, tmp_path: Path) -> None:
    run, marker = interrupted(), tmp_path / "marker"
    path = run / {**OF_POINT, "chunk": "replay/000000020-000000040.pt"}[what].format(40)
    torch.save({"step": Code(marker)}, path)
    rewrite_manifest(run, 40)
    with pytest.raises(UserError, match=r"is no checkpoint.*nothing in it was executed") as raised:
        train_counting("run", "-resume", overrides=QUICK)
    assert "weights_only" not in str(raised.value)
    assert "load" not in str(raised.value), "no word on how to load it all the same"
    if what == "weights":
        with pytest.raises(UserError, match="cannot be read"):
            evaluate_run(counting_domain((7,))[0], ["-n", "run", "-device", "cpu"])
    assert not marker.exists()
    with pytest.raises(FileExistsError):  # the bait would have worked
        (torch.load(path, weights_only=False), torch.load(path, weights_only=False))
    assert marker.exists()


@pytest.mark.parametrize("key", ["acting", "updaters", "env", "random", "metrics_file", "obs"])
def test_a_point_of_another_version_is_one_line(key: str) -> None:
    run = interrupted()
    path = run / "resume" / "000000040.pt"
    state = torch.load(path, weights_only=True)
    del state[key]
    torch.save(state, path)
    rewrite_manifest(run, 40)
    with pytest.raises(UserError, match=f"another version of this code .*{key}.*run.json"):
        train_counting("run", "-resume", overrides=QUICK)


def test_episodes_that_cannot_be_played_again_are_closed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As after an update of the simulator: said, and the run goes on."""
    run = interrupted()
    path = run / "resume" / "000000040.pt"
    state = torch.load(path, weights_only=True)
    state["obs"] += 1
    torch.save(state, path)
    rewrite_manifest(run, 40)
    train_counting("run", "-resume", overrides=QUICK)
    assert "could not be replayed" in capsys.readouterr().out
    assert RunFolder("run").steps()[-1] == 45
