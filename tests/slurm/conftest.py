"""A cluster for the tests of this folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers_sweeps import SweepTree
from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start the cluster once. The tests are skipped with a reason where Slurm cannot start."""
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # a socket's path must be short
    made = Cluster(folder)
    try:
        try:
            made.start()
        except OSError as error:
            pytest.skip(f"Slurm does not start on this machine: {error}")
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sweeps(cluster: Cluster, tmp_path: Path) -> SweepTree:
    """A tree whose sweeps find the cluster."""
    return SweepTree(tmp_path / "tree", **cluster.environ)
