"""Which scan backends exist and where they run, and the Triton kernels without a GPU."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pwm_core.errors import UserError
from pwm_core.models import scan
from pwm_core.models.scan import (
    BACKENDS,
    available_backends,
    check_backend,
    linear_attention,
)
from pwm_core.paths import REPOSITORY
from pwm_core.runtime import use_precision, use_tensor_float
from tests.helpers import load_small
from tests.helpers_scan import TF32_TOLERANCE, TOLERANCE, make_inputs

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


def test_triton_is_refused_where_its_driver_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image without a C compiler: else the first launch would end the run."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(scan, "HAS_TRITON", True)
    monkeypatch.setattr(scan, "_driver_loads", lambda: False)
    with pytest.raises(UserError, match=r"needs Triton's driver, which does not load here; use"):
        check_backend("triton", torch.device("cuda"))


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


@pytest.mark.skipif(not scan.HAS_TRITON, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="its driver loads here")
def test_kernels_are_torchs_where_tritons_driver_does_not_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a GPU's driver the real one fails, and says so once."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    scan._driver_loads.cache_clear()
    try:
        assert [scan.fuses("auto", torch.device("cuda")) for _ in range(2)] == [False, False]
    finally:
        scan._driver_loads.cache_clear()
    assert re.fullmatch(r"note: torch's kernels .* does not load: .+\n", capsys.readouterr().out)


def test_no_other_backend_imports_triton() -> None:
    code = "import sys, pwm_core.commands.train; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=120)


class TensorFloat(TorchFunctionMode):
    """Rounds the factors of float32 products to 10 bits of mantissa, as CUDA does with TF32."""

    PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function in self.PRODUCTS:
            args = tuple(rounded(x) if x.dtype == torch.float32 else x for x in args)
        return function(*args, **(kwargs or {}))


def rounded(x: Tensor) -> Tensor:
    """``x`` float32 with 10 bits of mantissa, to the nearest."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
def test_the_error_with_tensor_float_stays_in_its_tolerance(backend: str) -> None:
    """The factors are rounded here, so that no GPU is needed; Triton's kernel has no products."""
    inputs = make_inputs(40)
    expected = linear_attention(*inputs[:4], initial_state=inputs.initial_state).output
    single = [x.float() for x in inputs]
    errors = []
    for mode in (contextlib.nullcontext(), TensorFloat()):
        with mode:
            found = linear_attention(*single[:4], None, single[4], backend=backend).output
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[0] <= TOLERANCE[torch.float32]
    assert TOLERANCE[torch.float32] < errors[1] <= TF32_TOLERANCE[backend]


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@needs_cuda
@pytest.mark.parametrize("tensor_float", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_error_on_cuda_stays_in_its_tolerance(backend: str, tensor_float: bool) -> None:
    inputs = make_inputs(40)
    expected = linear_attention(*inputs[:4], initial_state=inputs.initial_state).output
    single = [x.cuda().float() for x in inputs]
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        use_tensor_float(tensor_float)
        found = linear_attention(*single[:4], None, single[4], backend=backend).output
    finally:
        use_tensor_float(before)
    most = TF32_TOLERANCE[backend] if tensor_float else TOLERANCE[torch.float32]
    assert (found.cpu() - expected).norm() <= most * expected.norm()


@pytest.mark.parametrize(
    ("half", "tensor_float", "rounds"), [(True, True, False), (False, True, True)]
)
def test_tensor_float_takes_the_place_of_bfloat16(
    half: bool, tensor_float: bool, rounds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What UseAmp leaves in float32 is computed in float32."""
    monkeypatch.setattr("pwm_core.runtime.has_bfloat16", lambda _device: True)
    found: list[bool] = []
    monkeypatch.setattr("pwm_core.runtime.use_tensor_float", found.append)
    flags = {"UseAmp": half, "TF32": tensor_float}
    config = load_small(*(f"BasicSettings.{key}={value}" for key, value in flags.items()))
    use_precision(config.BasicSettings, torch.device("cuda"))
    assert found == [rounds]
