"""Tensors that say they are on a CUDA device and hold no values, on machines without one too.

They run a training step as a GPU would, operation by operation, with CUDA's autocast rules, so that
its kernels can be counted where there is no GPU. Nothing is computed.

Without a CUDA device, torch needs three more things. Autograd asks the device for its streams, and
gets the do-nothing answers of the ``meta`` device. Its engine refuses CUDA tensors, so they name
``meta`` as their device while gradients are computed; see :meth:`FakeCuda.backward`. Operations
that are one kernel on CUDA are declared, so that torch does not take them apart; see :data:`WHOLE`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pwm_core.errors import UserError

DEVICE = torch.device("cuda", 0)
_META = torch.device("meta")
_DEVICE_TYPES = {"cuda": 1, "meta": 14}  # c10/core/DeviceType.h
WHOLE = ("silu_backward", "mish_backward", "_fused_rms_norm", "_fused_rms_norm_backward")
"""Operations with a CUDA kernel that other devices compose of simpler ones."""
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry


def _no_kernel(*_args: Any) -> Any:
    raise NotImplementedError("this operation is here to be counted only")


@functools.cache
def _stand_in_for_cuda() -> torch.library.Library:
    """Let the ``meta`` device answer autograd's questions about streams, and declare WHOLE."""
    declared = torch.library.Library("aten", "IMPL")
    for name in WHOLE:
        if hasattr(torch.ops.aten, name) and not torch.backends.cuda.is_built():
            declared.impl(name, _no_kernel, "CUDA")
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (max(_DEVICE_TYPES.values()) + 1)).in_dll(library, _GUARDS)
    guards[_DEVICE_TYPES["cuda"]] = guards[_DEVICE_TYPES["meta"]]
    return declared  # it lasts as long as this object


def can_count_gradients() -> bool:
    """Whether autograd runs on fake CUDA tensors: in CPU builds of torch or beside a GPU."""
    return torch.cuda.is_available() or not torch.backends.cuda.is_built()


class FakeCuda(TorchDispatchMode):
    """A mode in which new tensors are fake, and those on ``cuda:0`` behave as on a GPU.

    Subclasses see every operation in :meth:`seen`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode()
        self._in_backward = False

    def seen(self, operator: Any, arguments: list[Any], result: Any) -> None:
        """Called after every operation with all its arguments and its result."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._in_backward and operator is torch.ops.prim.device.default:
            return _META
        if self._in_backward and kwargs.get("device") == _META:
            kwargs["device"] = DEVICE
        result = operator(*args, **kwargs)
        self.seen(operator, [*args, *kwargs.values()], result)
        return result

    def __enter__(self) -> FakeCuda:
        if not torch.cuda.is_available():
            _stand_in_for_cuda()
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def on_cuda(self, tensor: Tensor) -> Tensor:
        """A fake tensor on ``cuda:0`` with the shape, strides and dtype of ``tensor``.

        Call it before the mode is entered.
        """
        kept = FakeTensor(self.fake, torch.empty_like(tensor, device="meta"), DEVICE)
        return nn.Parameter(kept, tensor.requires_grad) if _is_parameter(tensor) else kept

    def move(self, module: nn.Module) -> None:
        """Replace the parameters and buffers of ``module`` by fake ones on ``cuda:0``."""
        for part in module.modules():
            for kept in (part._parameters, part._buffers):
                for name, tensor in kept.items():
                    if tensor is not None:
                        kept[name] = self.on_cuda(tensor)
        module.to = lambda _device: module  # they are there already

    @contextlib.contextmanager
    def backward(self) -> Iterator[None]:
        """Autograd's engine without its threads; tensors name ``meta`` as their device.

        Raises:
            UserError: torch is built for CUDA and finds no device. Its engine then asks the driver.
        """
        if not can_count_gradients():
            raise UserError(
                "this torch is built for CUDA and finds no GPU, so it cannot run a backward pass "
                "on tensors without values: use a CPU build of torch, or a machine with a GPU"
            )
        self._in_backward = True
        try:
            with torch.autograd.set_multithreading_enabled(False):
                yield
        finally:
            self._in_backward = False


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


@contextlib.contextmanager
def cuda_autocast(enabled: bool) -> Iterator[None]:
    """CUDA's autocast to bfloat16, which ``torch.autocast`` refuses where there is no CUDA."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", enabled)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
