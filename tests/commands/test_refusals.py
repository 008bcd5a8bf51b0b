"""Bad input of ``train.py`` and ``eval.py`` gets one clear line, and nothing is begun."""

from __future__ import annotations

import re
import resource
import shutil
from pathlib import Path

import pytest
import torch

from tests.commands.clone import NAME, Clone, Result, flags

OK_RUN = (
    "-n", "fresh", "-env_name", "ALE/Pong-v5", "-device", "cpu", "-logger", "none",
    *flags("JointTrainAgent={SampleMaxSteps: 65, BufferWarmUp: 64}"),
)  # fmt: skip
"""A command that would end well, and soon."""
BAD_TRAIN: dict[str, tuple[list[str], list[str]]] = {
    "missing config": (
        ["-config_path", "config_files/atary.yaml"],
        ["config_files/atary.yaml", "config_files/atari.yaml"],
    ),
    "config is a folder": (["-config_path", "config_files"], ["config_files"]),
    "unknown key": (
        flags("Models.WorldModel.Stemm=1"),
        ["-set Models.WorldModel.Stemm=1", "unknown key", "'Stem'"],
    ),
    "wrong type": (flags("Models.Gamma=high"), ["Models.Gamma = 'high'", "valid number"]),
    "impossible value": (flags("Models.Gamma=1"), ["Models.Gamma = 1", "less than 1"]),
    "scan that needs a GPU": (
        flags("Models.WorldModel.Scan=triton"),
        ["Models.WorldModel.Scan: triton needs", "-set Models.WorldModel.Scan=chunked"],
    ),
    "impossible together": (
        flags("JointTrainAgent.ImagineContext=65"),
        ["JointTrainAgent.ImagineContext", "at most BatchLength = 64"],
    ),
    "not an override": (flags("Models.Gamma"), ["Models.Gamma", "Section.Key=value"]),
    "unknown game": (["-env_name", "ALE/Pnog-v5"], ["'ALE/Pnog-v5'", "'ALE/Pong-v5'"]),
    "unknown protocol": (flags("BasicSettings.Protocol=x"), ["Protocol", "pamorl or standard"]),
    "vectors of a game": (flags("BasicSettings.ObsType=proprio"), ["ObsType", "visual"]),
    "unknown device": (["-device", "tpu"], ["-device tpu", "cpu", "cuda"]),
    "device number": (["-device", "cuda:x"], ["-device cuda:x"]),
    "empty device": (["-device", ""], ["-device"]),
    "unknown logger": (["-logger", "wandb,mlflow"], ["'mlflow'", "wandb, tensorboard", "none"]),
    "unknown flag": (["-sead", "3"], ["unknown flag -sead", "'-seed'"]),
    "a flag glued to a name": (["-noresume"], ["unknown flag -noresume"]),
    "config without a name": (["-config_path", ""], ["-config_path", "YAML file is needed"]),
    "a task of another domain": (["-env_name", "walker_walk"], ["it is a task of pwm_dmc/"]),
    "a config of another domain": (
        [
            "-config_path",
            "config_files/dmc_tiny.yaml",
            *flags("JointTrainAgent={BufferWarmUp: 256, SampleMaxSteps: 300}"),
        ],
        ["'suite'", "config_files/dmc_tiny.yaml is a config of pwm_dmc/"],
    ),
    "an action held for long": (flags("BasicSettings.FrameSkip=1000"), ["FrameSkip", "at most"]),
    "too many environments": (
        flags(
            "JointTrainAgent={NumEnvs: 10000000, BufferWarmUp: 640000000}",
            "JointTrainAgent={SampleMaxSteps: 650000000, BufferMaxLength: 650000000}",
        ),
        ["JointTrainAgent.NumEnvs = 10000000 is too many", "GB"],
    ),
    "networks too large": (flags("Models.Hidden=300000"), ["networks", "lower Models.Hidden"]),
    "seed is a word": (["-seed", "one"], ["-seed", "one"]),
    "negative seed": (["-seed", "-1"], ["-seed", "-1 is not a whole number"]),
    "name with a slash": (["-n", "a/b"], ["'a/b'", "letters, digits"]),
    "name is the parent": (["-n", ".."], ["'..'"]),
    "empty name": (["-n", ""], ["''"]),
    "name with a newline": (["-n", "a\nb"], [r"'a\nb'"]),
    "name too long": (["-n", "x" * 300], ["x" * 20]),
    "name too long in bytes": (["-n", "ü" * 120], ["ü" * 20, "200 bytes at most"]),
    "name of a score file": (["-n", "Pong--greedy"], ["'Pong--greedy'", "no '--'"]),
    "name exists": (["-n", NAME], [NAME, "exists already"]),
    "replay too large": (
        flags("JointTrainAgent={BufferMaxLength: 1000000000000, BufferStorage: memory}"),
        ["JointTrainAgent.BufferMaxLength", "GB"],
    ),
}
BAD_EVAL: dict[str, tuple[list[str], list[str]]] = {
    "no such run": (["-n", NAME.replace("Pong", "Pnog")], ["no run named", f"'{NAME}'"]),
    "name with a slash": (["-n", "../ckpt"], ["'../ckpt'"]),
    "no such checkpoint": (["-checkpoint", "7"], ["-checkpoint 7", "1000, 1030"]),
    "not a checkpoint": (["-checkpoint", "newest"], ["-checkpoint newest", "last, all"]),
    "not a digit": (["-checkpoint", "²"], ["-checkpoint ²", "last, all"]),
    "no episodes": (["-episodes", "0"], ["-episodes", "0 is not a whole number from 1 on"]),
    "episodes is a word": (["-episodes", "many"], ["-episodes", "many"]),
    "another game": (["-env_name", "ALE/Boxing-v5"], ["ALE/Pong-v5", "ALE/Boxing-v5"]),
    "unknown game": (["-env_name", "Pnog"], ["'Pnog'"]),
    "missing config": (["-config_path", "nope.yaml"], ["nope.yaml"]),
    "unknown key": (flags("Models.Gama=1"), ["Models.Gama", "'Gamma'"]),
    "another size": (flags("Models.Hidden=64"), ["Models.Hidden was 128 and is 64"]),
    "another network": (
        flags("Models.WorldModel.PosteriorNorm=false"),
        ["Models.WorldModel.PosteriorNorm was True and is False"],
    ),
    "unknown flag": (["-logger", "none"], ["-logger"]),
    "a flag cut short": (["-check", "last"], ["unknown flag -check", "'-checkpoint'"]),
}


def check_refusal(result: Result, says: list[str]) -> None:
    """One clear line on stderr, a non-zero status, no traceback."""
    assert result.status == 2, result.stderr[-2000:]
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in result.stdout
    assert len(line) < 600
    for text in says:
        assert text in line


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_train_refuses(case: str, clone: Clone, trained: Result) -> None:
    """And leaves no run behind: the corrected command may use the name."""
    argv, says = BAD_TRAIN[case]
    before = sorted(clone.root.glob("ckpt/*"))
    check_refusal(clone.train(*OK_RUN, *argv), says)
    assert sorted(clone.root.glob("ckpt/*")) == before


@pytest.mark.parametrize("case", BAD_EVAL)
def test_eval_refuses(case: str, clone: Clone, evaluated: Result) -> None:
    argv, says = BAD_EVAL[case]
    before = {path: path.read_bytes() for path in clone.root.glob("eval_result/*.*")}
    check_refusal(clone.evaluate("-n", NAME, "-device", "cpu", *argv), says)
    assert {path: path.read_bytes() for path in clone.root.glob("eval_result/*.*")} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_without_a_device(device: str, clone: Clone, trained: Result) -> None:
    for result in (
        clone.train(*OK_RUN, "-device", device),
        clone.evaluate("-n", NAME, "-device", device),
    ):
        check_refusal(result, [f"-device {device}", "-device cpu"])


def test_unusable_wandb_is_refused(clone: Clone, trained: Result) -> None:
    before = sorted(clone.root.glob("ckpt/*"))
    result = clone.train(*OK_RUN, "-logger", "wandb", WANDB_MODE="nonsense")
    check_refusal(result, ["WANDB_MODE"])
    assert sorted(clone.root.glob("ckpt/*")) == before


@pytest.mark.parametrize(
    ("script", "argv", "missing"),
    [
        ("train", ["-n", "fresh"], "-env_name"),
        ("train", ["-env_name", "ALE/Pong-v5"], "-n"),
        ("eval", [], "-n"),
    ],
)
def test_missing_flag(script: str, argv: list[str], missing: str, clone: Clone) -> None:
    check_refusal(clone.call(f"pwm_atari/{script}.py", *argv), [missing, "required"])


@pytest.mark.parametrize("script", ["train", "eval"])
@pytest.mark.parametrize(
    "argv",
    [["-sead", "3"], ["-seed", "x"], [], ["-set", "Models.Gama=1", "-n", "a", "-env_name", "b"]],
)
def test_a_wrong_flag_is_told_before_torch_is_imported(
    script: str, argv: list[str], clone: Clone
) -> None:
    """In less than twice the time of the libraries that read a config, whatever the machine.

    An evaluation's overrides need the run first.
    """
    if script == "eval" and "-set" in argv:
        return

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = clone.run("-X", "importtime", *command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert not re.search(r"\| +(torch|numpy|gymnasium)$", result.stderr, re.M)
        assert result.status == (0 if command[0] == "-c" else 2)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    libraries = "import argparse, yaml, pydantic; pydantic.create_model('Section', Key=(int, 1))"
    turns = [(seconds(f"pwm_atari/{script}.py", *argv), seconds("-c", libraries)) for _ in range(3)]
    ours, theirs = (min(times) for times in zip(*turns, strict=True))
    assert ours < 2 * theirs


def test_a_process_of_its_own_refuses_alike(clone: Clone) -> None:
    result = clone.run("train.py", "-n", "fresh", "-env_name", "ALE/Pnog-v5", cwd="pwm_atari")
    check_refusal(result, ["'ALE/Pong-v5'"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Models: {Hiden: 512}", ["mine.yaml", "Models.Hiden", "'Hidden'"]),
        ("Models: {Hidden: wide}", ["mine.yaml", "Models.Hidden", "'wide'"]),
        ("Models: {Hidden: 0}", ["mine.yaml", "Models.Hidden", "greater than or equal to 1"]),
        ("Models: {Hidden: 512", ["mine.yaml", "not valid YAML"]),
        ("just words", ["mine.yaml", "sections"]),
    ],
)
def test_bad_config_file(content: str, says: list[str], clone: Clone, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    result = clone.train(*OK_RUN, "-config_path", "mine.yaml", cwd=tmp_path)
    check_refusal(result, says)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("checkpoints/000001030.pt", b"", ["000001030.pt"]),
        ("checkpoints/000001030.pt", b"not an archive", ["000001030.pt"]),
        ("checkpoints/000001030.pt", None, ["000001030.pt"]),
        ("run.json", b"{", ["run.json"]),
        ("run.json", b"{}", ["run.json"]),
        ("run.json", b"[]", ["run.json"]),
        ("config.yaml", b"Models: {", ["config.yaml"]),
        ("config.yaml", ("Hidden: 128", "Hidden: 64"), ["000001030.pt"]),
    ],
)
def test_damaged_run(
    file: str, content: bytes | tuple | None, says: list[str], clone: Clone, trained: Result
) -> None:
    """``None``: cut in half, as by a full disk; a pair: one text in place of another."""
    shutil.copytree(clone.folder(NAME), clone.folder("damaged"), dirs_exist_ok=True)
    path = clone.folder("damaged") / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text(path.read_text().replace(*content))
    try:
        check_refusal(clone.evaluate("-n", "damaged", "-device", "cpu"), says)
    finally:
        shutil.rmtree(clone.folder("damaged"))


def test_run_without_a_checkpoint(clone: Clone, trained: Result) -> None:
    shutil.copytree(clone.folder(NAME), clone.folder("young"))
    shutil.rmtree(clone.folder("young") / "checkpoints")
    check_refusal(clone.evaluate("-n", "young", "-device", "cpu"), ["young", "no checkpoint"])


def test_help_lists_the_flags(clone: Clone) -> None:
    published = ["-n", "-seed", "-config_path", "-env_name", "-device", "-set"]
    for script, more in (("train", ["-logger"]), ("eval", ["-episodes", "-checkpoint", "-greedy"])):
        result = clone.call(f"pwm_atari/{script}.py", "-h")
        assert (result.status, result.stderr) == (0, "")
        assert all(re.search(rf"(?m)^ +{flag}\b|, {flag}\b", result.stdout) for flag in more)
        assert all(f"{flag} " in result.stdout for flag in published)
