"""Fixtures of the tests of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pwm_core.paths import LOGDIR_VARIABLE
from tests.helpers_counting import QUICK
from tests.helpers_runs import folder, small_disk, train_counting


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that is soon full."""
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(small_disk(tmp_path / "disk", "12m"))
        except OSError as error:
            pytest.skip(f"no small disk can be mounted here: {error}")
        yield path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ``QUICK`` that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOGDIR_VARIABLE, str(tmp_path_factory.mktemp("whole")))
        train_counting("whole", overrides=QUICK)
        return folder("whole")
