"""Tests of which scores are averaged, which are reported separately, and how settings are named."""

from __future__ import annotations

import json
import re

import pytest

from pwm_core.config_file import load_config
from results.names import config_name
from results.settings import COLOURS
from tests.results.folders import Folders


@pytest.mark.parametrize(
    ("path", "overrides", "name"),
    [
        ("atari.yaml", [], "full"),
        ("atari_tiny.yaml", ["BasicSettings.Seed=7"], "tiny"),
        ("atari.yaml", ["Models.WorldModel={Scan: odd_even}", "BasicSettings.Threads=1"], "full"),
        ("atari_tiny.yaml", ["Models.Agent.EntropyCoef=3e-3"], "tiny, entropy 3e-3"),
        ("atari_tiny.yaml", ["Models.Gamma=0.9", "Models.Agent.LR=2.5e-5"],
         "tiny, gamma 0.9, agent lr 2.5e-5"),
        ("atari_tiny.yaml", ["Models.WorldModel.LR=2.5e-5"], "tiny, world model lr 2.5e-5"),
        ("atari_tiny.yaml", ["JointTrainAgent={SampleMaxSteps: 9000, BufferMaxLength: 9000}"],
         "tiny"),
        ("atari_tiny.yaml", ["JointTrainAgent={SampleMaxSteps: 9000, BufferMaxLength: 2000}"],
         "tiny, buffer max length 2000"),
        ("STORM.yaml", ["BasicSettings.Seed=7"], "STORM"),
        ("STORM_tiny.yaml", ["Models.Agent.Gamma=0.9"], "STORM tiny, gamma 0.9"),
    ],
)  # fmt: skip
def test_names_of_configs(path: str, overrides: list[str], name: str) -> None:
    """Names are short, do not depend on seed, machine and length of training, and never contain the
    whole config."""
    config = load_config(
        f"config_files/{path}", defaults="config_files/atari.yaml", overrides=overrides
    )
    assert config_name("atari", config.model_dump(mode="json")).short == name


def test_names_of_configs_with_many_changes() -> None:
    """The name has a hash of the changes, which are listed in full."""

    def name(*overrides: str) -> tuple[str, tuple[str, ...]]:
        defaults = "config_files/atari.yaml"
        config = load_config(defaults, defaults=defaults, overrides=overrides)
        return config_name("atari", config.model_dump(mode="json"))

    many = [f"Models.Agent.{key}=0.5" for key in ("LR", "Eps", "EMADecay", "WeightDecay")]
    short, changes = name(*many)
    assert re.fullmatch(r"full, variant [0-9a-f]{4}", short)
    assert "Models.Agent.LR 0.5 (in atari.yaml: 3e-05)" in changes
    assert len(changes) == 4
    assert name(*many[1:], "Models.Gamma=0.9")[0] != short
    assert name(*many, "BasicSettings.Seed=4")[0] == short


def test_a_config_from_before_a_key_had_the_full_configs_value() -> None:
    """It is not taken for the config file that sets the key to something else."""
    config = load_config("config_files/dmc_tiny.yaml", defaults="config_files/dmc.yaml")
    content = config.model_dump(mode="json")
    assert config_name("dmc", content).short == "tiny"
    del content["Models"]["Agent"]["Eps"]
    assert config_name("dmc", content).short == "tiny, agent eps 1e-5"


def test_protocols_are_kept_apart(folders: Folders) -> None:
    """Two protocols in one folder are two settings with separate names and colours."""
    folders.add("Pong", 1, 7.3, sticky=0.25)
    folders.add("Pong", 2, 14.6, sticky=0.0)
    assert folders.means() == {"full, pamorl": {"Pong": 7.3}, "full, standard": {"Pong": 14.6}}
    found = folders.gather()
    assert set(found.colours.values()) == set(COLOURS[:2])
    (panel,) = found.panels
    assert len(panel.results) == 2


def test_pixels_and_vectors_have_panels_of_their_own(folders: Folders) -> None:
    """They are compared with different published tables, since a table holds for one kind of
    observation."""
    for obs in ("proprio", "visual"):
        folders.add_dmc("walker_walk", 1, 500, frames=100_000, repeat=2, obs=obs)
    panels = {panel.title: panel for panel in folders.gather().panels}
    assert set(panels) == {"DeepMind Control, from proprioception", "DeepMind Control, from pixels"}
    pixels = panels["DeepMind Control, from pixels"]
    assert [table.name for table in pixels.tables] == ["dmc_paper_visual", "dmc_curves_visual"]


def test_tasks_of_one_setting_may_differ_in_action_repeat_and_budget(folders: Folders) -> None:
    folders.add_dmc("cartpole_balance", 1, 900, frames=100_000, repeat=8)
    folders.add_dmc("cheetah_run", 1, 300, frames=200_000, repeat=4)
    assert folders.means() == {"tiny": {"cartpole_balance": 900, "cheetah_run": 300}}


def test_runs_of_one_task_with_two_action_repeats_stand_apart(folders: Folders) -> None:
    folders.add_dmc("cartpole_balance", 1, 900, frames=100_000, repeat=8)
    folders.add_dmc("cartpole_balance", 2, 100, frames=100_000, repeat=4)
    assert folders.means() == {
        "tiny, action repeat 4": {"cartpole_balance": 100},
        "tiny, action repeat 8": {"cartpole_balance": 900},
    }


def test_the_published_budget_counts_before_others(folders: Folders) -> None:
    """It counts even if other budgets have more seeds. The rest is reported separately and
    listed."""
    folders.add_dmc("cartpole_balance", 1, 900, frames=100_000, repeat=8)
    for seed in (2, 3):
        folders.add_dmc("cartpole_balance", seed, 500, frames=48_000, repeat=8)
    assert folders.means() == {"tiny": {"cartpole_balance": 900}}
    assert len(folders.gather().others) == 2


@pytest.mark.parametrize(("obs", "budget"), [("proprio", 100_000), ("visual", 200_000)])
def test_the_published_budget_is_that_of_the_observation(
    obs: str, budget: int, folders: Folders
) -> None:
    """The paper has half as many steps from proprioception as from pixels."""
    for seed, frames in ((1, 100_000), (2, 200_000)):
        mean = frames / 1000
        folders.add_dmc("cartpole_balance", seed, mean, frames=frames, repeat=8, obs=obs)
    ((result,),) = [tasks.values() for tasks in folders.panel().results.values()]
    assert result.mean == budget / 1000


def test_a_second_run_of_a_seed_is_listed_as_one_that_does_not_count(folders: Folders) -> None:
    folders.add("Pong", 1, 7.3)
    for path in list(folders.scores.glob("Pong-*")):
        path.with_name(path.name.replace("Pong", "PongAgain")).write_bytes(path.read_bytes())
    folders.report()
    assert sorted(folders.table("runs").counts) == ["no", "yes"]


def test_the_default_evaluation_counts(folders: Folders) -> None:
    """Neither a greedy episode nor another action repeat replaces it."""
    run = folders.add("Pong", 1, 7.3)
    folders.evaluate_again(run, "greedy-1ep", 21.0, greedy=True)
    protocol = {"name": "pamorl", "repeat_action_probability": 0.25, "noop_max": 0}
    folders.evaluate_again(run, "frameskip3", 1.0, protocol_settings={**protocol, "frame_skip": 3})
    assert folders.means() == {"full": {"Pong": 7.3}}
    found = folders.gather()
    assert {score.evaluation.label for score in found.others} == {"greedy-1ep", "frameskip3"}
    assert {score.run for score in found.scores} == {run}
    folders.report()
    listed = folders.table("runs").set_index("evaluation")
    assert listed.counts.to_dict() == {"default": "yes", "greedy-1ep": "no", "frameskip3": "no"}
    assert listed.loc["greedy-1ep", "policy"] == "1 episode, greedy"


def test_more_episodes_of_the_same_policy_count_before_fewer(folders: Folders) -> None:
    run = folders.add("Pong", 1, 7.3)  # two episodes
    folders.evaluate_again(run, "1ep", 3.0)
    assert folders.means() == {"full": {"Pong": 7.3}}
    text = (folders.scores / f"{run}.csv").read_text().replace("return_1", "return_1,return_2")
    lines = text.splitlines()
    more = "\n".join([lines[0], lines[-1].replace(",7.3,", ",9.0,", 1) + ",9.0"]) + "\n"
    (folders.scores / f"{run}--3ep.csv").write_text(more)
    (folders.scores / f"{run}--3ep.json").write_bytes((folders.scores / f"{run}.json").read_bytes())
    assert folders.means() == {"full": {"Pong": 9.0}}


def test_only_another_evaluation_is_shown_and_said(folders: Folders) -> None:
    run = folders.add("Pong", 1, 7.3)
    folders.evaluate_again(run, "greedy-1ep", 21.0, greedy=True)
    (folders.scores / f"{run}.csv").unlink()
    (folders.scores / f"{run}.json").unlink()
    assert folders.means() == {"full": {"Pong": 21.0}}
    assert any("shown are greedy-1ep" in line for line in folders.gather().problems)


def test_a_missing_seed_is_said(folders: Folders) -> None:
    for game, seeds in (("Pong", (1, 2)), ("Boxing", (1, 2, 3))):
        for seed in seeds:
            folders.add(game, seed, float(seed))
    found = folders.gather()
    (line,) = [line for line in found.problems if "differ in their seeds" in line]
    assert "seeds 1, 2, 3 on Boxing; seeds 1, 2 on Pong" in line
    assert folders.means()["full"] == {"Boxing": 2, "Pong": 1.5}


def test_one_seed_is_said(folders: Folders) -> None:
    folders.add("Pong", 1, 1.0)
    assert any("one seed, so no spread" in line for line in folders.gather().problems)


def test_two_runs_of_one_seed_count_once(folders: Folders) -> None:
    """Only one counts in the means and in the curves. Both are listed."""
    for seed in (1, 2):
        folders.add("Pong", seed, float(seed))
    for kind in ("csv", "json", "metrics.jsonl"):
        text = (folders.scores / f"Pong-0.25-seed1.{kind}").read_text()
        text = text.replace("408000,1.0", "408000,9.0").replace("Pong-0.25-seed1", "Pong-again")
        (folders.scores / f"Pong-again.{kind}").write_text(text)
    found = folders.gather()
    assert any("2 runs of seed 1 (Pong-0.25-seed1, Pong-again)" in p for p in found.problems)
    assert any("Pong-again: no curve" in p for p in found.problems)
    assert len(found.scores) == 3
    assert folders.means() == {"full": {"Pong": 1.5}}
    (curves,) = found.panels[0].curves["Pong"].values()
    assert [curve.run for curve in curves] == ["Pong-0.25-seed1", "Pong-0.25-seed2"]


def test_finished_runs_count_before_unfinished_ones(folders: Folders) -> None:
    folders.add("Pong", 1, 10.0)
    for seed in (2, 3):
        path = folders.scores / f"{folders.add('Pong', seed, 20.0)}.csv"
        path.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")
    found = folders.gather()
    assert any("step 51,000 of 102,000" in line for line in found.problems)
    assert folders.means() == {"full": {"Pong": 10.0}}


def test_an_unfinished_run_of_as_many_frames_is_no_part_of_a_mean(folders: Folders) -> None:
    """Nor does it put the finished runs behind another evaluation."""
    runs = [folders.add("Pong", seed, value) for seed, value in ((1, 10.0), (2, 12.0), (3, -20.0))]
    path = folders.scores / f"{runs[2]}.json"
    about = json.loads(path.read_text())
    for key in ("SampleMaxSteps", "BufferMaxLength"):
        about["config"]["JointTrainAgent"][key] *= 2
    path.write_text(json.dumps(about))
    assert folders.means() == {"full": {"Pong": 11.0}}
    folders.evaluate_again(runs[0], "greedy-1ep", 21.0, greedy=True)
    assert folders.means() == {"full": {"Pong": 11.0}}
