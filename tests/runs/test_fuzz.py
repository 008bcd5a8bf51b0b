"""Bad input of every kind: one clear error, never a traceback of ours, a hang or code run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.errors import UserError
from pwm_core.paths import LOGDIR_VARIABLE, REPOSITORY
from pwm_core.runs.checkpoint import ResumePoints, _digest
from pwm_core.runs.files import write_text
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.tensor_files import read_tensors, write_tensors
from tests.helpers_processes import no_longer_than
from tests.helpers_runs import CrashError, crash_at, folder, same, tensors, train_counting

DEFAULTS = "config_files/atari.yaml"
FULL = (REPOSITORY / DEFAULTS).read_bytes()
TINY = (REPOSITORY / "config_files/atari_tiny.yaml").read_bytes()
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
fuzz = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    with no_longer_than(120):
        yield


# ----------------------------------------------------------------------------------------- config


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def check(path: Path, content: bytes, *overrides: str) -> None:
    """A valid config, or one clear line."""
    path.write_bytes(content)
    try:
        config = load_config(path, defaults=DEFAULTS, overrides=overrides)
    except UserError as error:
        line = " ".join(str(error).split())
        assert 10 < len(line) < 2000 + sum(map(len, overrides))
        return
    assert isinstance(config, Config)


@fuzz
@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff\xfe")
@example(b"\x00")
@example(b"[" * 5000)
@example(b"a: " * 5000)
@example(b"&a [*a]")
@example(b"&a {Models: *a}")
@example(b"? [Models]\n: 1")
@example(b"? {a: b}\n: 1")
@example(b"Models: !!python/object/apply:os.mkdir [pwned]")
@example(b"BasicSettings: {Seed: !!timestamp 2001-99-99}")
@example(b"BasicSettings: {Seed: 2001-99-99}")
@example(b"BasicSettings: {Seed: 0b}")
@example(b"BasicSettings: {Seed: " + b"9" * 5000 + b"}")
@example(b"BasicSettings: {Seed: 1e999}")
@example(b"BasicSettings: {Seed: .nan}")
@example(b"BasicSettings: {Seed: .inf}")
@example(b"BasicSettings: {ObsShape: '(" + b"9" * 5000 + b",1,3)'}")
@example(b"Models: {Gamma: 1e400}")
@example(b"Models: {Gamma: '1e999999999999'}")
@example(b"Models: {Gamma: ...e5}")
@example(b"Models: {Gamma: '.e5'}")
@example(b"Models: {Hidden: '1e300'}")
@example(b"Models: {Hidden: 1180591620717411303424}")
@example(b"JointTrainAgent: {BatchSize: 1e30, ImagineBatchSize: 1e29}")
@example(b"Task: 3\nBasicSettings:\nModels:")
@example(b"<<: {Models: {Gamma: 2}}")
@example(b"<<: 3")
@example(b"!!binary x")
@example(b"Models: !!set {a, b}")
@example(b"Models: !!omap [1]")
def test_any_bytes_as_a_config(scratch: Path, content: bytes) -> None:
    check(scratch / "bytes.yaml", content)
    assert not Path("pwned").exists()


@fuzz
@given(st.text(max_size=200))
def test_any_text_as_a_config(scratch: Path, content: str) -> None:
    check(scratch / "text.yaml", content.encode("utf-8", "surrogatepass"))


@fuzz
@given(st.data())
def test_a_config_with_some_bytes_changed(scratch: Path, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([FULL, TINY])))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        end = place + data.draw(st.integers(0, 8))
        new = st.binary(max_size=6) | st.sampled_from([b"\n", b": ", b"-"])
        content[place:end] = data.draw(new)
    check(scratch / "mutated.yaml", bytes(content))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=5,
)


def keys(section: Any, prefix: str = "") -> list[str]:
    """Dotted keys of all values and sections."""
    found = []
    for name, value in section.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += keys(value, f"{prefix}{name}.")
    return found


KEYS = keys(load_config(DEFAULTS).model_dump())


@fuzz
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_a_key(scratch: Path, key: str, value: Any) -> None:
    """As an override, which is YAML: JSON is a part of it."""
    check(scratch / "value.yaml", TINY, f"{key}={json.dumps(value)}")


@fuzz
@given(st.text(max_size=40) | st.tuples(st.sampled_from(KEYS), st.text(max_size=20)).map("=".join))
@example("=")
@example(".=1")
@example("Models.=1")
@example("Models..Gamma=1")
@example("Models.Gamma.x=1")
@example("Models.Gamma=2001-99-99")
@example("Models.Gamma=" + "[" * 50)
@example("Models.Gamma=" + "[" * 3000)
@example("." * 5000 + "=1")
@example("Models.Gamma=!!python/object/apply:os.mkdir [pwned]")
@example("BasicSettings.Seed=" + "9" * 5000)
def test_any_override(scratch: Path, override: str) -> None:
    check(scratch / "override.yaml", TINY, override)
    assert not Path("pwned").exists()


# ------------------------------------------------------------------------------------ checkpoints


def mutate(content: bytes, data: st.DataObject) -> bytes:
    """Cut, flip, overwrite, insert, repeat or swap."""
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(mutated) - 1)))
        how = data.draw(st.sampled_from(["cut", "flip", "write", "insert", "repeat", "drop"]))
        if how == "cut":
            del mutated[place:]
        elif how == "flip" and mutated:
            mutated[place] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "repeat":
            mutated[place:place] = mutated[place : place + data.draw(st.integers(1, 64))]
        elif how == "drop":
            del mutated[place : place + data.draw(st.integers(1, 64))]
        else:
            new = data.draw(st.binary(min_size=1, max_size=8))
            mutated[place : place + len(new) * (how == "write")] = new
    return bytes(mutated)


CONTENT = {
    "weights": {"a": torch.arange(60.0).view(3, 4, 5), "b": torch.zeros(2, dtype=torch.bool)},
    "list": [1, 2.5, "text", None, 1 << 100, (1, 2), torch.ones(3, dtype=torch.int64)],
}


@pytest.mark.parametrize("legacy", [False, True])
@fuzz
@given(data=st.data())
def test_any_damage_to_a_file_of_tensors(scratch: Path, legacy: bool, data: st.DataObject) -> None:
    """Also in torch's format from before zip archives, of which the reader knows the first bytes.
    What reads at all reads as data."""
    path = scratch / "tensors.pt"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(mutate(path.read_bytes(), data))
    with contextlib.suppress(UserError):
        read_tensors(path)


@fuzz
@given(st.binary(max_size=300))
@example(b"")
@example(b"PK\x03\x04")
@example(b"\x80\x02.")
@example(b"\x80\x02cos\nmkdir\nX\x05\x00\x00\x00pwned\x85R.")
@example(b"cos\nsystem\n(S'mkdir pwned'\ntR.")
def test_any_bytes_as_a_file_of_tensors(scratch: Path, content: bytes) -> None:
    path = scratch / "bytes.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bytes.pt cannot be read"):
        read_tensors(path)
    assert not Path("pwned").exists()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with the points 20 and 40."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOGDIR_VARIABLE, str(tmp_path_factory.mktemp("interrupted")))
        loop = "JointTrainAgent={BufferWarmUp: 38, SampleMaxSteps: 45, SaveEverySteps: 20}"
        with pytest.raises(CrashError):
            train_counting("run", overrides=[loop], hook=crash_at(43))
        yield folder("run")


FILES = (
    "resume/000000040.json", "resume/000000040.pt", "checkpoints/000000040.pt",
    "replay/000000020-000000040.pt", "resume/000000020.json", "replay/000000000-000000020.pt",
)  # fmt: skip


@fuzz
@given(st.data())
def test_any_damage_to_a_run(interrupted: Path, scratch: Path, data: st.DataObject) -> None:
    """The point that is used is one that was written, to the bit."""
    run = scratch / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(interrupted, run, copy_function=os.link)
    for name in data.draw(st.sets(st.sampled_from(FILES), min_size=1, max_size=3)):
        content = (run / name).read_bytes()
        (run / name).unlink()
        if data.draw(st.integers(0, 9)):
            (run / name).write_bytes(mutate(content, data))
    points, whole = ResumePoints(run), ResumePoints(interrupted)
    try:
        point = points.newest()
    except UserError:
        return
    if point is None:  # every manifest is gone
        assert not list(run.glob("resume/*.json"))
        return
    true = whole._read(point.step)
    assert point == true
    assert read_all(points, point) == read_all(whole, true)


def read_all(points: ResumePoints, point: Any) -> list[Any]:
    chunks = [(first, tensors(fields)) for first, fields in points.transitions(point)]
    content = [tensors(points.state(point)), chunks]
    return json.loads(json.dumps(content, default=lambda tensor: tensor.tolist()))


MANIFESTS = st.dictionaries(
    st.sampled_from(["step", "files", "chunks", "other"]),
    VALUES
    | st.lists(st.tuples(st.integers(), st.integers(), st.text(max_size=4)), max_size=2)
    | st.dictionaries(st.sampled_from([*FILES, "../x", "/etc/passwd", "\0"]), VALUES, max_size=3),
)


@fuzz
@given(VALUES | MANIFESTS, st.booleans())
def test_any_manifest(interrupted: Path, scratch: Path, point: Any, signed: bool) -> None:
    """Even with its own checksum right."""
    run = scratch / "forged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(interrupted, run, copy_function=os.link)
    path = run / "resume" / "000000040.json"
    path.unlink()
    content = {"point": point, "sha256": _digest(point)} if signed else point
    write_text(path, json.dumps(content))
    assert ResumePoints(run).newest().step == 20


@pytest.mark.parametrize("name", ["x", "²", "٣", "-1", "1e3", "9" * 400, " 40", "00.40"])
def test_strange_names_among_the_checkpoints(name: str, tmp_path: Path) -> None:
    run = RunFolder("run")
    run.path = tmp_path
    run.points.folder = tmp_path
    write_tensors(run.checkpoint(40), CONTENT)
    for kind in ("checkpoints/{}.pt", "resume/{}.json"):
        path = tmp_path / kind.format(name)
        with contextlib.suppress(OSError):  # too long
            write_text(path, "x")
    assert 40 in run.steps()
    with contextlib.suppress(UserError):
        run.points.newest()
    run.prune(1)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.pt", CONTENT)
    found, written = tensors(read_tensors(tmp_path / "x.pt")), tensors(CONTENT)
    assert found.keys() == written.keys()
    assert all(same(found[key], written[key]) for key in written)
