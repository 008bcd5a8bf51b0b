"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pwm_core.paths import LOGDIR_VARIABLE, LogDir
from tests.helpers_runs import PONG, RunTree, atari


@pytest.fixture(scope="session", autouse=True)
def no_logdir_of_the_user() -> Iterator[None]:
    """Commands that a test starts in a copy of the tree write into that copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(LOGDIR_VARIABLE, raising=False)
        yield


@pytest.fixture
def logdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogDir:
    """Runs and scores lie under the test's own folder."""
    monkeypatch.setenv(LOGDIR_VARIABLE, str(tmp_path))
    return LogDir(tmp_path)


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
