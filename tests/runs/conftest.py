"""Fixtures of the tests of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers_counting import QUICK, uninterrupted
from tests.helpers_runs import small_disk


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
    return uninterrupted(tmp_path_factory.mktemp("whole"), QUICK)
