"""The benchmark of the sequence models: what it measures, at sizes that take milliseconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import measure, sequence_models
from benchmarks.sequence_models import COLUMNS, MODELS, exponent, fit, measure_model
from pwm_core.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_measured_at_equal_width(name: str) -> None:
    rows = [measure_model(name, length, 32, 2, CPU, 1) for length in (8, 16)]
    for row in rows:
        assert row.keys() == {"model", "L", *COLUMNS.values()}
        for kind in ("training", "inference", "start", "imagination", "state"):
            assert row[COLUMNS[kind]] > 0
        assert row[COLUMNS["memory"]] >= 0
    growth = rows[1][COLUMNS["state"]] / rows[0][COLUMNS["state"]]
    # attention keeps its window's inputs and a counter; the others' state has a fixed size
    assert growth == pytest.approx(2, rel=0.02) if name == "attention" else growth == 1
    assert sequence_models.make_model(name, 8, 32, CPU).input_layer.first.weight.shape[1] == 32


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_is_the_slope_of_the_logarithms(power: float) -> None:
    lengths = [64, 128, 1024]
    assert exponent(lengths, [3.0 * x**power for x in lengths]) == pytest.approx(power, abs=1e-9)
    assert exponent([64, 128, 1024], [0.0, 2.0, 16.0]) == pytest.approx(1)  # log 0 is no point
    assert exponent([64], [1.0]) != exponent([64], [1.0])  # NaN: one point has no slope


def test_the_fit_takes_the_long_contexts_and_names_the_slides() -> None:
    rows = [
        {"model": "GRU", "L": length, **dict.fromkeys(COLUMNS.values(), max(100.0, length))}
        for length in (10, 100, 1000, 10000)
    ]
    (found,) = fit(rows, 100)
    assert found["training: L^"] == 1
    assert found["fitted"] == "L 100 to 10000"
    assert [found[f"{kind}, slides"] for kind in ("training", "inference")] == ["O(L)", "O(1)"]
    assert fit(rows, 10)[0]["training: L^"] < 0.9


@pytest.mark.slow
def test_the_command_saves_a_table_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    flags = ["--models", "SSM, FFT", "--lengths", "4", "8", "--fit-from", "4", "--hidden", "32"]
    flags += ["--repeats", "1", "--device", "cpu", "--save", "here"]
    monkeypatch.setattr(sys, "argv", ["sequence_models", *flags])
    sequence_models.main()
    saved = json.loads((tmp_path / "sequence_models_here.json").read_text())
    assert [row.get("L") for row in saved["rows"]] == [4, 8, None]
    assert saved["rows"][-1]["training, slides"] == "O(L log L)"
    assert (tmp_path / "sequence_models_here.png").read_bytes().startswith(b"\x89PNG")
    assert "| SSM, FFT | 8 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["sequence_models", "--lengths", "64"])
    with pytest.raises(UserError, match="--fit-from 1024: no length is that large"):
        sequence_models.main()
