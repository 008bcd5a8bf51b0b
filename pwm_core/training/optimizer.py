"""AdamW with gradient clipping that skips an update whose loss or gradient is not finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def one_tensor_per_dtype(module: nn.Module) -> list[Tensor]:
    """Lay all buffers of ``module`` that a checkpoint holds one behind the other in memory.

    The buffers become views of the returned tensors, one for each dtype, so that a single kernel
    can save or restore them all.
    """
    names = module.state_dict().keys()
    buffers = [buffer for name, buffer in module.named_buffers() if name in names]
    flats = []
    for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
        group = [buffer for buffer in buffers if buffer.dtype == dtype]
        flat = torch.cat([buffer.detach().flatten() for buffer in group])
        parts = flat.split([buffer.numel() for buffer in group])
        for buffer, part in zip(group, parts, strict=True):
            buffer.data = part.view(buffer.shape)
        flats.append(flat)
    return flats


class Optimizer:
    """AdamW with gradient clipping for one module. An update that is not finite is skipped.

    The device itself decides whether loss and gradient are finite, so the host never waits: torch's
    fused AdamW reads a flag on the device that cancels its step. The module's buffers (BatchNorm's
    running statistics, the return scale) are then restored, because the forward pass has already
    changed them.

    Args:
        module: the module to train.
        lr, eps, weight_decay: AdamW's settings.
        clip: gradients with a larger norm are scaled down to this norm.

    Attributes:
        skipped: int64 scalar on the device, the number of updates skipped so far.
        in_a_row: int64 scalar, the number of updates skipped since the last one that was applied.
        longest: int64 scalar, the largest ``in_a_row`` since :meth:`take_longest`.
    """

    def __init__(
        self, module: nn.Module, *, lr: float, eps: float, weight_decay: float, clip: float
    ) -> None:
        self._clip = clip
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._capturable = self._parameters[0].is_cuda  # needed inside a CUDA graph
        self.adamw = torch.optim.AdamW(
            self._parameters,
            lr=lr,
            eps=eps,
            weight_decay=weight_decay,
            fused=True,
            capturable=self._capturable,
        )
        self._state = one_tensor_per_dtype(module)
        self._before = [flat.clone() for flat in self._state]
        device = self._parameters[0].device
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.in_a_row = torch.zeros_like(self.skipped)
        self.longest = torch.zeros_like(self.skipped)
        # torch's fused AdamW reads this attribute; GradScaler sets it the same way.
        self.adamw.found_inf = torch.zeros((), device=device)  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def update(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """One update: save the buffers, then yield the function that applies a loss.

        The forward pass must run inside the context::

            with optimizer.update() as apply:
                gradient_norm = apply(module.loss(batch))
        """
        self.keep_buffers()
        yield self._apply

    @torch.no_grad()
    def keep_buffers(self) -> None:
        """Save the module's buffers, for the case that the update is not finite."""
        for before, now in zip(self._before, self._state, strict=True):
            before.copy_(now)

    def _apply(self, loss: Tensor) -> Tensor:
        """Backward pass, clipping and step; returns the norm before clipping, a float32 scalar."""
        self.adamw.zero_grad(set_to_none=True)
        loss.backward()
        return self.step(loss)

    def step(self, loss: Tensor) -> Tensor:
        """Clip the gradients of ``loss`` and take AdamW's step, unless something is not finite.

        Returns:
            the norm before clipping, a float32 scalar.
        """
        foreach = True if self._capturable else None  # one kernel for many parameters, as on CUDA
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip, foreach=foreach)
        bad = ~torch.isfinite(norm + loss.detach())
        self.adamw.found_inf.copy_(bad)  # type: ignore[attr-defined]
        self.adamw.step()
        self._restore_buffers_where(bad)
        return norm

    @torch.no_grad()
    def _restore_buffers_where(self, bad: Tensor) -> None:
        """Restore the saved buffers if ``bad`` (a bool scalar on the device) is set, and count."""
        for before, now in zip(self._before, self._state, strict=True):
            torch.where(bad, before, now, out=now)
        self.skipped += bad
        self.in_a_row.add_(1).mul_(bad)
        torch.maximum(self.longest, self.in_a_row, out=self.longest)

    def take_longest(self) -> int:
        """The largest number of consecutive skipped updates since the last call.

        It waits for the device.
        """
        longest = int(self.longest)
        self.longest.copy_(self.in_a_row)
        return longest

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state and the counters."""
        return {
            "optimizer": self.adamw.state_dict(),
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "longest": self.longest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, also for a state written on another device.

        The settings stay those that this optimiser was made with. So a run whose config has been
        changed goes on with what the config says.
        """
        kept = ("lr", "eps", "weight_decay", "capturable")
        (settings,) = [{key: group[key] for key in kept} for group in self.adamw.param_groups]
        self.adamw.load_state_dict(state["optimizer"])
        for group in self.adamw.param_groups:
            group.update(settings)
        for name in ("skipped", "in_a_row", "longest"):
            getattr(self, name).copy_(state[name])
