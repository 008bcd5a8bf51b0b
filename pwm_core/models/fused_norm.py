"""LayerNorm that is one kernel with its activation on CUDA, and torch's own elsewhere."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from pwm_core.models.scan import fuses


class FusedNorm(nn.LayerNorm):
    """A LayerNorm over one dimension, and the activation that follows it, if there is one.

    Its parameters have the names of the LayerNorm that it replaces. On CUDA it is the kernel of
    ``norm_triton``, unless torch compiles, which then fuses by itself.

    Args:
        norm: the LayerNorm whose parameters it takes over.
        silu: whether SiLU follows.
        kernels: ``Models.WorldModel.Kernels``.
    """

    def __init__(self, norm: nn.LayerNorm, kernels: str, *, silu: bool) -> None:
        super().__init__(norm.normalized_shape, eps=norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.kernels, self.silu = kernels, silu

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W).

        Under autocast the result is float32 on CUDA, but with the activation in the kernel it has
        the dtype of the product that follows, which would cast it. On a CPU it has the input's.
        """
        if torch.compiler.is_compiling() or not fuses(self.kernels, x.device):
            normalised = super().forward(x)
            return nn.functional.silu(normalised) if self.silu else normalised
        from pwm_core.models.norm_triton import fused_norm

        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type) if self.silu else torch.float32
        return fused_norm(x, self.weight, self.bias, self.eps, silu=self.silu, dtype=dtype)


def fuse_norms(module: nn.Module, kernels: str) -> None:
    """Replace every LayerNorm in ``module`` by a :class:`FusedNorm`, in place.

    Where SiLU follows it in a Sequential it becomes part of it. Names and values of the parameters
    stay as they are.
    """
    for part in list(module.modules()):
        if isinstance(part, nn.Sequential):
            for index, (norm, act) in enumerate(pairwise(list(part))):
                if type(norm) is nn.LayerNorm and type(act) is nn.SiLU:
                    part[index] = FusedNorm(norm, kernels, silu=True)
                    part[index + 1] = nn.Identity()
        for name, child in part.named_children():
            if type(child) is nn.LayerNorm:
                setattr(part, name, FusedNorm(child, kernels, silu=False))
