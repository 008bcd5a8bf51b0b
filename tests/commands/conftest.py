"""A short run of Pong and its evaluation, which the commands make once, and config files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands.clone import CONFIG, NAME, QUICK, Clone, Result, flags


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    made = Clone(tmp_path_factory.mktemp("cli"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def trained(clone: Clone) -> Result:
    """The README's command from inside the domain folder, its loggers the default ones."""
    return clone.run(
        "train.py", "-n", NAME, "-seed", "1", "-config_path", CONFIG, "-env_name", "ALE/Pong-v5",
        "-device", "cpu", *flags(*QUICK), cwd="pwm_atari",
    ).succeeded()  # fmt: skip


@pytest.fixture(scope="session")
def evaluated(clone: Clone, trained: Result) -> Result:
    """The README's command from inside the domain folder."""
    return clone.run(
        "eval.py", "-env_name", "ALE/Pong-v5", "-run_name", NAME, "-config_path", CONFIG,
        "-device", "cpu", "-seed", "1", cwd="pwm_atari",
    ).succeeded()  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Write a config file named ``mine.yaml``; text as it is, anything else as YAML."""

    def _write(content: Any) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return _write
