"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers_runs import PONG, RunTree, atari


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunTree]:
    """A copy of the source tree to run commands in, made once."""
    made = RunTree(tmp_path_factory.mktemp("runs"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def pong(tree: RunTree) -> Path:
    """A real run of :data:`PONG` with ``-deterministic`` that nothing met; its folder."""
    tree.start("atari", *atari("pong", PONG), "-deterministic").ended()
    return tree.folder("pong")
