"""Acting in real environments: the state carried from step to step, and acting as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pwm_core.models.linear_attention import RecurrentMemory, RecurrentState
from pwm_core.training.cuda_graph import Recorded


class ActingState:
    """What an agent, and no other, carries from one real step to the next, for N environments.

    Its tensors stay where they are, so that a CUDA graph can go on from them.

    Attributes:
        deter: (N, D) ``deter_{t-1}``.
        recurrent: the sequence model's state after step t-1.
        recorded: acting as a CUDA graph on this state, by sampled and by greedy actions.
    """

    def __init__(self, deter: Tensor, recurrent: RecurrentState) -> None:
        self.deter = deter
        self.recurrent = recurrent
        self.recorded: dict[bool, RecordedActing] = {}

    def begin(self, is_first: Tensor) -> tuple[Tensor, RecurrentState]:
        """``deter_{t-1}`` and the state to step from, zeros where ``is_first`` (N,) is set."""
        memories = [RecurrentMemory(memory.memory) for memory in self.recurrent.memories]
        recurrent = RecurrentState(list(self.recurrent.previous), memories)
        recurrent.reset(is_first)
        return self.deter.masked_fill(is_first.unsqueeze(-1), 0.0), recurrent

    def move(self, deter: Tensor, recurrent: RecurrentState) -> None:
        """Take over ``deter_t`` and the state after step t."""
        self.deter.copy_(deter)
        for mine, new in zip(self.recurrent.previous, recurrent.previous, strict=True):
            mine.copy_(new)
        for mine, new in zip(self.recurrent.memories, recurrent.memories, strict=True):
            mine.memory.copy_(new.memory)

    def state_dict(self) -> dict[str, Any]:
        """Its tensors."""
        memories = [memory.memory for memory in self.recurrent.memories]
        return {"deter": self.deter, "previous": self.recurrent.previous, "memories": memories}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        memories = [RecurrentMemory(memory) for memory in state["memories"]]
        self.move(state["deter"], RecurrentState(state["previous"], memories))


class RecordedActing:
    """Acting whose device work is one CUDA graph; observations and actions cross in pinned memory.

    Args:
        act: (N, ...) observations, (N,) bool is_first -> (N, ...) actions, all on the device.
        obs, is_first: of the shapes and dtypes to come.
        device: the CUDA device.
    """

    def __init__(
        self,
        act: Callable[[Tensor, Tensor], Tensor],
        obs: np.ndarray,
        is_first: np.ndarray,
        device: torch.device,
    ) -> None:
        self._host = [torch.as_tensor(x).clone().pin_memory() for x in (obs, is_first)]
        self._inputs = [x.to(device) for x in self._host]
        self._recorded = Recorded(lambda: act(*self._inputs))
        self._action: Tensor | None = None

    def __call__(self, obs: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        """The actions, (N, ...); waits for the device."""
        for host, device, value in zip(self._host, self._inputs, (obs, is_first), strict=True):
            host.copy_(torch.as_tensor(value))
            device.copy_(host, non_blocking=True)
        action = self._recorded()
        if self._action is None:
            self._action = torch.empty_like(action, device="cpu", pin_memory=True)
        self._action.copy_(action, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return self._action.numpy().copy()
