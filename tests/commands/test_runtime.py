"""What a run asks of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pwm_core.errors import UserError
from pwm_core.runtime import available_cores, has_bfloat16, refuse_too_many_envs
from tests.helpers_processes import ROOT, run_script


def test_threads_are_bounded_by_the_machine() -> None:
    """More would not be started, or leave no process able to fork."""
    code = "import torch; from pwm_core.runtime import use_threads; use_threads(100000); "
    done = run_script(code + "torch.ones(9, 9) @ torch.ones(9, 9); print(torch.get_num_threads())")
    assert done.returncode == 0, done.stderr
    cores = available_cores()
    note = f"note: BasicSettings.Threads is 100000; this machine has {cores} cores, all used"
    assert done.stdout.splitlines() == [note, str(cores)]


def test_environments_that_do_not_fit_are_refused() -> None:
    refuse_too_many_envs(8, 1_000_000)
    with pytest.raises(UserError, match=r"EvalEnvs = 100000000 is too many: .* about 100000 GB"):
        refuse_too_many_envs(100_000_000, 1_000_000, "EvalEnvs")


@pytest.mark.parametrize(
    ("instructions", "multiplies"),
    [(["avx512_f"], False), (["avx512_f", "avx512_bf16"], True), (["amx_bf16"], True)],
)
def test_bfloat16_is_used_where_the_cpu_multiplies_it(
    instructions: list[str], multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN takes it from any AVX-512, and emulates the products on an older one."""
    names = ("avx512_f", "amx_bf16", "avx512_bf16", "avx_ne_convert")
    found = {"architecture": "x86_64"} | {name: name in instructions for name in names}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert has_bfloat16(torch.device("cpu")) == multiplies


RESTART = """
import sys
from pwm_core.runtime import restart_without_optimisation
restart_without_optimisation()
print(__debug__, sys.flags.utf8_mode, sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("way", "flags"),
    [
        pytest.param("script", ["-O"], marks=pytest.mark.slow),
        ("script", []),
        ("module", ["-uO", "-X", "utf8"]),
    ],
)
def test_a_command_starts_again_without_optimisation(
    way: str, flags: list[str], tmp_path: Path
) -> None:
    """torch's compiler fails under ``-O``. Other flags and the arguments stay."""
    (tmp_path / "restart.py").write_text(RESTART)
    script = ["-m", "restart"] if way == "module" else [str(tmp_path / "restart.py")]
    optimised = {} if flags else {"PYTHONOPTIMIZE": "1"}
    done = subprocess.run(
        [sys.executable, *flags, *script, "-O", "a b"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **optimised},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    note, answer = done.stdout.splitlines()
    assert "starting again without" in note
    assert answer == f"True {int('utf8' in flags)} ['-O', 'a b']"
