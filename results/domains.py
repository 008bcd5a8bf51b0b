"""The domains of this repository, found by their packages: a new one needs no change here."""

from __future__ import annotations

import functools
import importlib

from pwm_core.config import REPOSITORY
from pwm_core.domain import Domain
from pwm_core.errors import UserError


@functools.cache
def known_domains() -> dict[str, Domain]:
    """Every :class:`Domain` in a ``pwm_*/train.py``, by name."""
    found = {}
    for path in sorted(REPOSITORY.glob("pwm_*/train.py")):
        module = importlib.import_module(f"{path.parent.name}.train")
        domains = (value for value in vars(module).values() if isinstance(value, Domain))
        found |= {domain.name: domain for domain in domains}
    return found


def find_domain(name: str) -> Domain:
    """The domain called ``name``.

    Raises:
        UserError: there is none.
    """
    domains = known_domains()
    if name not in domains:
        raise UserError(f"unknown domain {name!r}; known are {', '.join(domains)}")
    return domains[name]


def title_of(name: str) -> str:
    """What people call a domain."""
    domain = find_domain(name)
    return domain.title or domain.name
