"""Which scan backends exist and where they run, and the Triton kernels without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pwm_core.config import REPOSITORY
from pwm_core.errors import UserError
from pwm_core.models import scan
from pwm_core.models.scan import (
    BACKENDS,
    available_backends,
    check_backend,
    linear_attention,
)
from tests.helpers import load_small
from tests.helpers_scan import make_inputs


@pytest.mark.slow  # the interpreter takes about 20 seconds
@pytest.mark.skipif(not scan.HAS_TRITON, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="test_scan_triton.py runs it compiled")
def test_triton_interpreted() -> None:
    """The kernels give the right numbers in Triton's interpreter, in a separate process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/models/test_scan_triton.py"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from pwm_core.models import scan_triton

sizes = {"width": 128, "columns": 128, "key_block": 128, "value_block": 16}
for kernel in (scan_triton._forward_kernel, scan_triton._backward_kernel):
    types = {name: "*fp32" for name in kernel.arg_names} | {"length": "i32", "stride": "i32"}
    types |= dict.fromkeys(sizes, "constexpr")
    constants = {(kernel.arg_names.index(name),): size for name, size in sizes.items()}
    variants = [(types, constants)]
    if kernel is scan_triton._forward_kernel:  # without a gradient no state is kept
        none = {(kernel.arg_names.index("kept"),): None}
        variants.append((types | {"kept": "constexpr"}, constants | none))
    for types, constants in variants:
        source = triton.compiler.ASTSource(kernel, types, constants)
        target, options = GPUTarget("cuda", 90, 32), {"num_warps": 4}
        assert triton.compile(source, target=target, options=options).asm["cubin"]
"""


@pytest.mark.skipif(not scan.HAS_TRITON, reason="triton is not installed")
def test_triton_compiles_without_a_gpu(tmp_path: Path) -> None:
    """The kernels compile for a GPU; the interpreter also accepts Python that does not compile."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE]
    subprocess.run(command, env=environment, cwd=REPOSITORY, check=True, timeout=300)


def test_the_config_takes_every_backend() -> None:
    for name in BACKENDS:
        assert load_small(f"Models.WorldModel.Scan={name}").Models.WorldModel.Scan == name


@pytest.mark.parametrize(
    ("installed", "device", "says"),
    [(True, "cpu", "needs a CUDA device, not cpu"), (False, "cuda", "needs the package triton")],
)
def test_triton_is_refused_where_it_cannot_run(
    installed: bool, device: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(scan, "HAS_TRITON", installed)
    assert "triton" not in available_backends(torch.device(device))
    with pytest.raises(UserError, match=f"Models.WorldModel.Scan: triton {says}.*Scan=chunked"):
        check_backend("triton", torch.device(device))
    if device == "cpu":
        with pytest.raises(UserError, match=says):
            linear_attention(*make_inputs(2)[:4], backend="triton", return_states=True)


def test_no_other_backend_imports_triton() -> None:
    code = "import sys, pwm_core.train; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=120)
