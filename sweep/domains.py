"""The tasks that a sweep names."""

from __future__ import annotations

from pwm_core.domain import Domain, find_domain

__all__ = ["expand", "find_domain"]


def expand(domain: Domain, tasks: tuple[str, ...]) -> list[str]:
    """Return the short names of ``tasks``, each once and in order. Named lists are expanded."""
    lists = domain.benchmark.lists
    full = [short for task in tasks for short in lists.get(task, (task,))]
    return list(dict.fromkeys(domain.benchmark.short_name(task) for task in full))
