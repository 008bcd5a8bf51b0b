"""Score files: one for each run and evaluation setting, and nothing in them is lost or mixed."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from pwm_atari.train import ATARI as ATARI_DOMAIN
from pwm_core.commands.eval import _provenance
from pwm_core.config_file import load_config
from pwm_core.errors import UserError
from pwm_core.paths import find_logdir
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.score_file import NAME_BYTES, ScoreFile, Settings, setting_name
from tests.helpers_envs import counting_domain
from tests.helpers_runs import evaluate_counting, evaluate_run, rows_of, train_counting

pytestmark = pytest.mark.usefixtures("logdir")

SETTINGS = Settings("count", "pamorl", 3, 2, False, 0)
ATARI = "config_files/atari.yaml"


def scores(setting: str = "", **provenance: Any) -> ScoreFile:
    return ScoreFile("run", setting, SETTINGS, {"commit": "abc", **provenance})


def names() -> set[str]:
    """Of all score files, those set aside included."""
    found = find_logdir().scores.rglob("*.csv")
    return {str(path.relative_to(find_logdir().scores)) for path in found}


# ----------------------------------------------------------------------------------------- a file


def test_rows_are_in_order_and_a_step_has_one() -> None:
    scores().add(40, 160, [1.0, 2.0, 6.0])
    scores().add(20, 80, [0.0, 0.0, 0.0])
    file = scores()
    file.add(40, 160, [2.0, 2.0, 2.0])
    header, rows = rows_of(file.csv)
    assert header == ["step", "frames", "mean", "std", "return_0", "return_1", "return_2"]
    assert rows == [[20, 80, 0, 0, 0, 0, 0], [40, 160, 2, 0, 2, 2, 2]]
    about = json.loads(file.json.read_text())
    assert about == SETTINGS.__dict__ | {"commit": "abc", "run": "run", "setting": ""}
    assert {p.name for p in find_logdir().scores.iterdir()} == {"run.csv", "run.json"}


def test_returns_are_exact() -> None:
    returns = [1234567.0, -20.0, 839.7461]
    file = scores()
    file.add(20, 80, returns)
    assert rows_of(file.csv)[1][0][4:] == returns


def test_a_file_that_is_not_what_its_json_says_is_refused() -> None:
    file = scores()
    file.add(20, 80, [1.0, 2.0, 3.0])
    for text in ("", "step,frames\n", file.csv.read_text().replace("\n20,", "\nx,")):
        file.csv.write_text(text)
        with pytest.raises(UserError, match=r"run.csv is damaged"):
            scores()


def test_scores_without_their_json_are_set_aside() -> None:
    scores().add(20, 80, [1.0, 2.0, 3.0])
    (find_logdir().scores / "run.json").unlink()
    scores().add(40, 160, [4.0, 5.0, 6.0])
    assert len(rows_of(find_logdir().scores / "set_aside" / "run-1.csv")[1]) == 1
    assert [row[0] for row in rows_of(find_logdir().scores / "run.csv")[1]] == [40]


def test_scores_of_another_training_run_are_set_aside_each_time() -> None:
    for seed in (1, 2, 1):
        scores(training={"seed": seed}).add(20, 80, [float(seed)] * 3)
    assert names() == {"run.csv", "set_aside/run-1.csv", "set_aside/run-2.csv"}
    aside = find_logdir().scores / "set_aside"
    assert [rows_of(aside / f"run-{i}.csv")[1][0][2] for i in (1, 2)] == [1, 2]


def test_scores_of_another_training_run_are_set_aside_under_every_setting() -> None:
    """A report would take the other run's 50 episodes for this run's."""
    for setting, seed in (("50ep", 1), ("greedy", 2), ("", 2)):
        scores(setting, training={"seed": seed}).add(20, 80, [float(seed)] * 3)
    assert names() == {"run.csv", "run--greedy.csv", "set_aside/run--50ep-1.csv"}


def test_what_computes_an_evaluation_is_not_what_the_agent_was_trained_with() -> None:
    own = load_config(ATARI, defaults=ATARI)
    config = load_config(ATARI, defaults=ATARI, overrides=["BasicSettings.UseAmp=false"])
    about = _provenance(ATARI_DOMAIN, own, config, {})
    assert about["config"] == own.model_dump(mode="json")
    assert about["computed_with"]["UseAmp"] is False


def add_rows(number: int, ready: Any) -> None:
    """One of several evaluations of a run at the same time."""
    file = scores()
    ready.wait()
    for step in range(10):
        file.add(100 * step + number, 1, [1.0, 2.0, 3.0])


def test_evaluations_at_the_same_time_lose_no_row() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(4)
    processes = [context.Process(target=add_rows, args=(i, ready)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    steps = [row[0] for row in rows_of(scores().csv)[1]]
    assert steps == sorted(100 * step + number for step in range(10) for number in range(4))


# ---------------------------------------------------------------------------------------- setting


@pytest.mark.parametrize(
    ("overrides", "options", "name"),
    [
        ([], {}, ""),
        ([], {"greedy": True}, "greedy"),
        ([], {"greedy": True, "episodes": 1}, "greedy-1ep"),
        (["BasicSettings.FrameSkip=3"], {}, "frameskip3"),
        (["BasicSettings.Protocol=standard"], {}, "standard"),
        (["BasicSettings.Seed=7"], {"episodes": 5}, "5ep-seed7"),
        (["JointTrainAgent.EvalEnvs=3"], {}, "3envs"),
        (["JointTrainAgent.EvalEnvs=60"], {"episodes": 1}, "1ep"),
        (["BasicSettings={UseAmp: false, Threads: 2, GraphCheck: false}"], {}, ""),
    ],
)
def test_a_setting_is_named_by_what_differs(
    overrides: list[str], options: dict[str, Any], name: str
) -> None:
    own, config = load_config(ATARI), load_config(ATARI, overrides=overrides)
    settings = {"episodes": own.JointTrainAgent.EvalEpisodes, "greedy": False} | options
    assert setting_name(own, config, **settings) == name


def test_the_names_of_long_settings_are_short_and_differ() -> None:
    own = load_config(ATARI)
    found = set()
    for seed in (1, 2):
        overrides = ["BasicSettings={Protocol: standard, FrameSkip: 3}"]
        overrides.append(f"BasicSettings.Seed={4_000_000_000 + seed}")
        config = load_config(ATARI, overrides=overrides)
        found.add(setting_name(own, config, episodes=100000, greedy=True))
    assert len(found) == 2
    assert all(name.startswith("greedy-100000ep-") for name in found)
    assert all(len(name) <= NAME_BYTES for name in found)


def test_every_setting_keeps_a_file_of_its_own() -> None:
    """A greedy episode for a video does not displace the score."""
    train_counting("run")
    assert evaluate_counting("run").name == "run.csv"
    before = {path: path.read_bytes() for path in find_logdir().scores.iterdir()}
    greedy = evaluate_counting("run", "-greedy", "-video", "1", "-episodes", "1")
    assert greedy.name == "run--greedy-1ep.csv"
    assert json.loads(greedy.with_suffix(".json").read_text())["setting"] == "greedy-1ep"
    evaluate_counting("run", "-set", "BasicSettings.Protocol=standard")
    assert names() == {"run.csv", "run--greedy-1ep.csv", "run--standard.csv"}
    assert {path: path.read_bytes() for path in before} == before


def test_frames_are_those_of_training() -> None:
    """An evaluation that holds actions for longer has its own file."""
    train_counting("run")
    (trained,) = rows_of(evaluate_counting("run"))[1]
    path = evaluate_counting("run", "-set", "BasicSettings.FrameSkip=8")
    (row,) = rows_of(path)[1]
    assert path.name == "run--frameskip8.csv"
    assert row[:2] == trained[:2] == [60, 120]
    assert json.loads(path.with_suffix(".json").read_text())["protocol_settings"]["frame_skip"] == 8


# ------------------------------------------------------------------------------------ evaluations


def test_scores_of_a_run_that_was_made_anew_do_not_mix_with_the_old_ones() -> None:
    """The user moves ``ckpt/run`` away and trains under the same name."""
    train_counting("run", "-seed", "1")
    old = rows_of(evaluate_counting("run", "-checkpoint", "all", "-seed", "0"))[1]
    assert [row[0] for row in old] == [20, 40, 60]
    shutil.rmtree(find_logdir().runs / "run")
    train_counting("run", "-seed", "2", overrides=["JointTrainAgent.SaveEverySteps=30"])
    new = rows_of(evaluate_counting("run", "-checkpoint", "all", "-seed", "0"))[1]
    assert [row[0] for row in new] == [30, 60]
    assert rows_of(find_logdir().scores / "set_aside" / "run--seed0-1.csv")[1] == old


def test_a_run_older_than_a_config_key_is_evaluated_with_the_default() -> None:
    train_counting("run")
    expected = rows_of(evaluate_counting("run"))[1]
    path = RunFolder.open("run").path / "config.yaml"
    lines = [line for line in path.read_text().splitlines() if "Compile" not in line]
    path.write_text("\n".join(lines) + "\n")
    assert rows_of(evaluate_counting("run"))[1] == expected


def test_a_run_is_evaluated_by_the_commands_of_its_domain() -> None:
    train_counting("run")
    other = replace(counting_domain((7,))[0], name="other")
    with pytest.raises(UserError, match=r"belongs to pwm_counting: use .* in pwm_counting/"):
        evaluate_run(other, ["-n", "run", "-device", "cpu"])


def test_an_evaluation_that_fails_leaves_the_scores_where_they_are() -> None:
    train_counting("run")
    evaluate_counting("run")
    before = {path: path.read_bytes() for path in find_logdir().scores.iterdir()}
    (RunFolder.open("run").path / "checkpoints" / "000000060.pt").write_bytes(b"")
    with pytest.raises(UserError):
        evaluate_counting("run", "-episodes", "5")
    assert {path: path.read_bytes() for path in find_logdir().scores.iterdir()} == before


def test_weights_with_a_flipped_bit_are_not_evaluated() -> None:
    """Anywhere in the tensors: the archive's checksums tell."""
    train_counting("run")
    path = RunFolder("run").checkpoint(60)
    content = path.read_bytes()
    weights = torch.load(path, weights_only=True)["world_model"]
    largest = max(weights.values(), key=lambda tensor: tensor.nbytes).numpy().tobytes()
    at = content.index(largest[:64]) + len(largest) // 2
    flipped = bytearray(content)
    flipped[at] ^= 1
    path.write_bytes(flipped)
    torch.load(path, weights_only=True)  # torch itself reads it
    with pytest.raises(UserError, match=r"000000060.pt is damaged: the checksum of .* differs"):
        evaluate_counting("run")
    assert not find_logdir().scores.exists()
    path.write_bytes(content)
    evaluate_counting("run")
