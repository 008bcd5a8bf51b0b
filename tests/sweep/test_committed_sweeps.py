"""The sweeps of ``config_files/sweeps`` against what is committed beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pwm_core.config_file import leaves, read_yaml
from pwm_core.paths import REPOSITORY
from sweep import schema
from sweep.places import Places
from sweep.plan import check_settings, make_plan

SWEEPS = REPOSITORY / "config_files" / "sweeps"
ABLATIONS = REPOSITORY / "config_files" / "ablations"


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("dmc_tiny", "."),
        ("ablations", "studies/ablations"),
        ("ablations_catch", "studies/ablations"),
        ("dmc_tiny_choices", "studies/choices"),
    ],
)
def test_the_results_of_this_repository_are_those_of_its_sweeps(
    file: str, folder: str, tmp_path: Path
) -> None:
    """Else the sweep that made them would be refused, as after a change of its config file."""
    plan = make_plan(schema.load(schema.find(file), []))
    committed = Places(tmp_path, REPOSITORY / folder / "eval_result")
    assert any((committed.results / f"{run.name}.csv").exists() for run in plan.runs)
    check_settings(plan, committed)


def test_the_study_covers_every_ablation_file() -> None:
    """A variant is called as its file, and differs from the default in the keys of that file."""
    covered = set()
    for name in ("ablations", "ablations_catch"):
        plan = make_plan(schema.load(schema.find(name)))
        assert plan.sweep.suffix == "ablations"
        assert len(plan.sweep.seeds) >= 3
        for (variant, task), config in plan.configs.items():
            if variant == "default":
                continue
            changes = leaves(read_yaml(ABLATIONS / f"{variant}.yaml"))
            default = leaves(plan.configs["default", task].model_dump())
            assert leaves(config.model_dump()) == default | changes != default
            covered.add(variant)
    # The numbers of all scans are the same up to rounding, so one of them is enough.
    files = {path.stem for path in ABLATIONS.glob("*.yaml")}
    assert covered == files - {"scan_sequential", "scan_kogge_stone"}
