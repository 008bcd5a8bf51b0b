"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers_runs import RunTree


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunTree]:
    """A copy of the source tree to run commands in, made once."""
    made = RunTree(tmp_path_factory.mktemp("runs"))
    yield made
    made.close()
