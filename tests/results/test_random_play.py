"""Tests of ``python -m results.random_play``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from pwm_core.commands import cli
from pwm_core.domain import find_domain
from pwm_core.training.evaluation import standard_error
from results import random_play
from results.random_play import main, measure


def test_random_play_is_measured_again_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command writes one row per task and action repeat and keeps the other rows."""
    monkeypatch.setattr(random_play, "FOLDER", tmp_path)
    (tmp_path / "dmc.csv").write_text(
        "task,frame_skip,episodes,mean,std\nhopper_hop,2,9,1,2\ncartpole_balance,8,9,1,2\n"
    )
    flags = ["dmc", "cartpole_balance", "--repeats", "8", "--episodes", "3", "--seed", "5"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["random_play", *flags])
        main()
        table = pd.read_csv(tmp_path / "dmc.csv").set_index(["task", "frame_skip"])
        assert table.loc[("hopper_hop", 2), "episodes"] == 9
        row = table.loc[("cartpole_balance", 8)]
        assert row.episodes == 3
        assert 100 < row["mean"] < 500
    assert f"cartpole_balance, action repeat 8: {row['mean']:.1f}" in capsys.readouterr().out
    about = json.loads((tmp_path / "dmc.json").read_text())
    assert (about["domain"], about["seed"]) == ("dmc", 5)

    domain = find_domain("dmc")
    config = random_play.load_config(
        domain.defaults, defaults=domain.defaults, overrides=["BasicSettings.FrameSkip=8"]
    )
    returns = [e.episode_return for e in measure(domain, config, "cartpole_balance", 3, 5)]
    assert sum(returns) / 3 == pytest.approx(row["mean"], rel=1e-5)
    assert standard_error(returns) > 0, "every episode begins elsewhere and acts otherwise"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["chess", "pawn"], "'chess' is not a domain"),
        (["dmc", "walker_wak"], "walker_wak"),
        (["dmc", "walker_walk", "--repeats", "0"], "0 is not a list"),
        (["dmc", "walker_walk", "--seed", "-1"], "-1 is not a whole number"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["random_play", *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run_command(main)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
