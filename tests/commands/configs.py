"""What tests of config files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pwm_core.config_file import load_config
from pwm_core.errors import UserError

ATARI = "config_files/atari.yaml"


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def refusal(path: str | Path, overrides: tuple[str, ...] = ()) -> str:
    """The one line with which ``path`` is refused."""
    with pytest.raises(UserError) as caught:
        load_config(path, defaults=ATARI, overrides=overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message
