"""Gradient updates that a non-finite number cannot ruin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Updater:
    """AdamW with clipping on one module; an update whose loss or gradient is not finite is skipped.

    Whether it is finite is decided on the device, so that nothing waits for the answer: the fused
    optimiser takes a flag that turns its step into none. Buffers (BatchNorm's running statistics,
    the return scale) that the forward pass has already moved are moved back.

    Args:
        module: what is trained.
        lr, eps, weight_decay: AdamW's.
        clip: largest norm of the gradient.

    Attributes:
        skipped: int64 scalar on the device, the updates skipped so far.
        in_a_row: int64 scalar, how many of them since the last good update.
        longest: int64 scalar, the longest such row since :meth:`take_longest`.
    """

    def __init__(
        self, module: nn.Module, *, lr: float, eps: float, weight_decay: float, clip: float
    ) -> None:
        self._module, self._clip = module, clip
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=lr,
            eps=eps,
            weight_decay=weight_decay,
            fused=True,
            capturable=self._parameters[0].is_cuda,  # as a CUDA graph asks for
        )
        self._buffers = list(module.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]
        device = self._parameters[0].device
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.in_a_row = torch.zeros_like(self.skipped)
        self.longest = torch.zeros_like(self.skipped)
        # torch's fused AdamW reads this attribute; GradScaler sets it the same way.
        self.optimizer.found_inf = torch.zeros((), device=device)  # type: ignore[attr-defined]

    @torch.no_grad()
    def begin(self) -> None:
        """Call before the forward pass: remembers the buffers."""
        for before, buffer in zip(self._before, self._buffers, strict=True):
            before.copy_(buffer)

    def step(self, loss: Tensor) -> Tensor:
        """Backward, clip, update; returns the gradient's norm before clipping, a float32 scalar."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip)
        bad = ~torch.isfinite(norm + loss.detach())
        self.optimizer.found_inf.copy_(bad)  # type: ignore[attr-defined]
        self.optimizer.step()
        self._undo_where(bad)
        return norm

    @torch.no_grad()
    def _undo_where(self, bad: Tensor) -> None:
        for before, buffer in zip(self._before, self._buffers, strict=True):
            buffer.copy_(torch.where(bad, before, buffer))
        self.skipped += bad
        self.in_a_row.add_(1).mul_(bad)
        torch.maximum(self.longest, self.in_a_row, out=self.longest)

    def take_longest(self) -> int:
        """The longest row of skipped updates since the last call; waits for the device."""
        longest = int(self.longest)
        self.longest.copy_(self.in_a_row)
        return longest

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and the counters."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "longest": self.longest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("skipped", "in_a_row", "longest"):
            getattr(self, name).copy_(state[name])
