"""The domains of this repository, found by their packages: a new one needs no change here."""

from __future__ import annotations

import functools

from pwm_core import domain as core
from pwm_core.domain import Domain


@functools.cache
def find_domain(name: str) -> Domain:
    """The domain called ``name``.

    Raises:
        UserError: there is none.
    """
    return core.find_domain(name)


def title_of(name: str) -> str:
    """What people call a domain."""
    domain = find_domain(name)
    return domain.title or domain.name
