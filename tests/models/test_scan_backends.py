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

INTERPRETED = (
    "tests/models/test_scan_triton.py",
    "tests/models/test_imagined_triton.py",
    "tests/models/test_norm_triton.py",
)


@pytest.mark.slow  # the interpreter takes about half a minute
@pytest.mark.skipif(not scan.HAS_TRITON, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="test_scan_triton.py runs it compiled")
def test_triton_interpreted() -> None:
    """The kernels give the right numbers in Triton's interpreter, in a separate process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *INTERPRETED],
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
COMPILE_IMAGINED = """
import triton
from triton.backends.compiler import GPUTarget
from pwm_core.models.imagined_triton import _step_kernel as kernel

sizes = {"length": 16, "horizon": 15, "width": 128, "columns": 128, "key_block": 32,
         "value_block": 128, "length_block": 16, "horizon_block": 16}
for half in ("*bf16", "*fp32"):
    types = {name: "*fp32" for name in kernel.arg_names} | dict.fromkeys(sizes, "constexpr")
    types |= dict.fromkeys(("per_row", "first", "chunks"), "i32") | {"position": "*i64"}
    types |= {"projected": half, "gate": half}
    constants = {(kernel.arg_names.index(name),): size for name, size in sizes.items()}
    none = {"chunk_keys": "constexpr", "chunk_values": "constexpr"}
    nothing = {(kernel.arg_names.index(name),): None for name in none}
    for added, gone in (({}, {}), (none, nothing)):
        source = triton.compiler.ASTSource(kernel, types | added, constants | gone)
        target, options = GPUTarget("cuda", 90, 32), {"num_warps": 4}
        assert triton.compile(source, target=target, options=options).asm["cubin"]
"""


COMPILE_NORM = """
import triton
from triton.backends.compiler import GPUTarget
from pwm_core.models import norm_triton

sizes = {"width": 512, "block": 512, "silu": True}
for kernel in (norm_triton._forward_kernel, norm_triton._backward_kernel):
    types = {name: "*fp32" for name in kernel.arg_names} | dict.fromkeys(sizes, "constexpr")
    types |= {"x": "*bf16"} | ({"eps": "fp32"} if "eps" in types else {"rows": "i32"})
    constants = {(kernel.arg_names.index(name),): size for name, size in sizes.items()}
    source = triton.compiler.ASTSource(kernel, types, constants)
    target, options = GPUTarget("cuda", 90, 32), {"num_warps": 4}
    assert triton.compile(source, target=target, options=options).asm["cubin"]
"""


@pytest.mark.skipif(not scan.HAS_TRITON, reason="triton is not installed")
@pytest.mark.parametrize(
    "code", [COMPILE, COMPILE_IMAGINED, COMPILE_NORM], ids=["scan", "imagined", "norm"]
)
def test_triton_compiles_without_a_gpu(code: str, tmp_path: Path) -> None:
    """The kernels compile for a GPU; the interpreter also accepts Python that does not compile."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
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
