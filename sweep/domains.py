"""The domains there are: every folder ``pwm_<name>`` whose ``train.py`` holds a ``Domain``."""

from __future__ import annotations

import importlib

from pwm_core.config import REPOSITORY
from pwm_core.domain import Domain
from pwm_core.errors import UserError, closest


def names() -> list[str]:
    """Of all domains."""
    found = (path.parent.name.removeprefix("pwm_") for path in REPOSITORY.glob("pwm_*/train.py"))
    return sorted(name for name in found if name != "core")


def find_domain(name: str) -> Domain:
    """The domain called ``name``.

    Raises:
        UserError: there is none.
    """
    if name not in names():
        hint = closest(name, names()) or f"; there are {', '.join(names())}"
        raise UserError(f"unknown domain {name!r}{hint}")
    module = importlib.import_module(f"pwm_{name}.train")
    for value in vars(module).values():
        if isinstance(value, Domain):
            return value
    raise UserError(f"pwm_{name}/train.py holds no Domain")


def expand(domain: Domain, tasks: tuple[str, ...]) -> list[str]:
    """Short names of ``tasks``, which may hold named lists; each once, in the order given."""
    lists = domain.benchmark.lists
    full = [short for task in tasks for short in lists.get(task, (task,))]
    return list(dict.fromkeys(domain.benchmark.short_name(task) for task in full))
