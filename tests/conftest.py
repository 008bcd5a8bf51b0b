"""Fixtures of several test files, and what is collected on a machine without environments."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pwm_core.paths import LOGDIR_VARIABLE, LogDir

if TYPE_CHECKING:
    from tests.helpers_runs import RunTree

NEED_ENVIRONMENTS = (
    *("commands", "envs", "results", "runs", "slurm", "sweep"),
    *(f"training/test_{name}.py" for name in ("evaluation", "learning", "trainer", "videos")),
)
"""What a machine without gymnasium cannot collect; see ``requirements-gpu-smoke.txt``."""
HAS_ENVIRONMENTS = importlib.util.find_spec("gymnasium") is not None
collect_ignore = [] if HAS_ENVIRONMENTS else list(NEED_ENVIRONMENTS)


def pytest_report_header() -> list[str]:
    """Say which tests are left out."""
    if HAS_ENVIRONMENTS:
        return []
    return [f"gymnasium is not installed: left out are {', '.join(NEED_ENVIRONMENTS)}"]


LONGEST = ("training/test_learning.py", "slurm/test_slurm.py", "runs/test_sigkill.py")
"""Files of slow tests that take minutes each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process waits for one at the end."""
    items.sort(key=lambda item: not item.nodeid.removeprefix("tests/").startswith(LONGEST))


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
    from tests.helpers_runs import RunTree

    made = RunTree(tmp_path_factory.mktemp("runs"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def pong(tree: RunTree) -> Path:
    """A real run of ``PONG`` with ``-deterministic`` that nothing met; its folder."""
    from tests.helpers_runs import PONG, atari

    tree.start("atari", *atari("pong", PONG), "-deterministic").ended()
    return tree.folder("pong")
