"""Tables of the documentation that the code must agree with."""

from __future__ import annotations

import re

from pwm_core.config_file import leaves, load_config
from pwm_core.paths import REPOSITORY


def test_the_table_of_the_domains_differences_is_complete() -> None:
    atari, dmc = (
        leaves(load_config(f"config_files/{name}.yaml").model_dump()) for name in ("atari", "dmc")
    )
    text = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+(?:\.\w+)+)` \| (\S+).*? \| (\S+).* \|$", text, re.MULTILINE)
    found = {key: (first, second) for key, first, second in rows}
    differing = {key: (atari[key], dmc[key]) for key in atari if atari[key] != dmc[key]}
    assert found.keys() == differing.keys()
    for key, values in differing.items():
        for written, value in zip(found[key], values, strict=True):
            expected = str(value).lower() if isinstance(value, bool) else f"{value}"
            assert written == expected or float(written) == float(value), key


def test_every_named_file_exists() -> None:
    """Pages name files from the repository's root."""
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    folders = "pwm_core|pwm_atari|pwm_dmc|config_files|sweep|results|benchmarks|scripts|tests"
    named = {
        (page.name, name)
        for page in pages
        for name in re.findall(
            rf"(?<![\w./-])(?:{folders})/[\w./-]+\.(?:py|yaml|sh|png)", page.read_text("utf-8")
        )
    }
    assert len(named) > 50
    assert [found for found in sorted(named) if not (REPOSITORY / found[1]).is_file()] == []


def test_every_named_test_exists() -> None:
    """Pages name tests as ``file::test``, or by the name of the function alone. Dots at the end
    stand for the rest of a name."""
    functions: dict[str, set[str]] = {}
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        functions[path.stem] = set(re.findall(r"def (test_\w+)\(", path.read_text("utf-8")))
    everything = set().union(*functions.values())
    missing, count = [], 0
    for page in (REPOSITORY / "docs").glob("*.md"):
        names = r"`(?:(test_\w+)::)?(test_\w+)(\.\.\.)?`"
        for file, test, dots in re.findall(names, page.read_text("utf-8")):
            known = functions.get(file, set()) if file else everything
            count += 1
            if not (any(name.startswith(test) for name in known) if dots else test in known):
                missing.append(f"{page.name}: {file}::{test}")
    assert count > 50
    assert missing == []
