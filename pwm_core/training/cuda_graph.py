"""CUDA graphs: thousands of small kernels launched with one call.

A full-size training step launches thousands of small kernels. Launching them one by one from Python
takes many times longer than computing them. A CUDA graph captures them once and then launches all
of them with one call. :class:`CapturedUpdate` and :class:`CapturedActing` use it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from pwm_core.models.types import Batch, Metrics

EAGER_CALLS = 3
"""Number of eager calls before the capture. They create every buffer and library handle."""

Output = TypeVar("Output")


class CudaGraph(Generic[Output]):
    """A function without arguments whose CUDA work is captured once and then replayed.

    The first :data:`EAGER_CALLS` calls run eagerly. The tensors that the function reads must stay
    in the same memory: inputs are copied into the same tensors before each call, and state is
    updated in place. Each call overwrites the result of the previous one. Random numbers differ in
    every replay, because torch advances its generator with the graph.
    """

    def __init__(self, function: Callable[[], Output]) -> None:
        self._function = function
        self._stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0
        self._output: Output

    def __call__(self) -> Output:
        """Run the function eagerly, capture it, or replay it."""
        self._calls += 1
        if self._calls <= EAGER_CALLS:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                output = self._function()
            torch.cuda.current_stream().wait_stream(self._stream)
            return output
        if self._graph is None:
            gc.collect()  # freeing an old graph during the capture would be an error
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._output = self._function()
        self._graph.replay()
        return self._output


class CapturedUpdate:
    """Sampling and ``Agent.update`` as CUDA graphs, one for each combination of flags.

    Args:
        update: ``Agent.update``.
        sample: draws the batches of an update.
        on_device: whether ``sample`` runs on the device and so becomes part of the graph. If not,
            the batches are copied into the tensors that the graph reads.
    """

    def __init__(
        self,
        update: Callable[..., Metrics],
        sample: Callable[[], tuple[Batch, ...]],
        *,
        on_device: bool,
    ) -> None:
        self._update, self._sample, self._on_device = update, sample, on_device
        self._graphs: dict[tuple[bool, bool], CudaGraph[Metrics]] = {}
        self._batches: tuple[Batch, ...] = ()

    def __call__(self, *, world_model: bool, actor_critic: bool) -> Metrics:
        """Sample batches and update on them; metrics are scalars on the device."""
        if not self._on_device:
            self._copy_in(self._sample())
        key = (world_model, actor_critic)
        if key not in self._graphs:
            self._graphs[key] = CudaGraph(
                lambda: self._update(
                    *(self._batches or self._sample()),
                    world_model=world_model,
                    actor_critic=actor_critic,
                )
            )
        return self._graphs[key]()

    def reset(self) -> None:
        """Forget the graphs, which read tensors that are there no longer; new ones are captured."""
        self._graphs.clear()

    def _copy_in(self, batches: tuple[Batch, ...]) -> None:
        """Copy ``batches`` into the tensors that the graph reads."""
        if not self._batches:
            self._batches = tuple(Batch(*(x.clone() for x in batch)) for batch in batches)
        for mine, batch in zip(self._batches, batches, strict=True):
            for static, field in zip(mine, batch, strict=True):
                static.copy_(field, non_blocking=True)


class CapturedActing:
    """Acting as a CUDA graph. Observations and actions are copied through pinned memory.

    Args:
        act: observations (N, ...) and is_first (N,) bool -> actions (N, ...), all on the device.
        obs, is_first: examples with the shapes and dtypes of all later inputs.
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
        self._graph = CudaGraph(lambda: act(*self._inputs))
        self._action: Tensor | None = None

    def __call__(self, obs: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        """The actions (N, ...); it waits for the device."""
        for host, device, value in zip(self._host, self._inputs, (obs, is_first), strict=True):
            host.copy_(torch.as_tensor(value))
            device.copy_(host, non_blocking=True)
        action = self._graph()
        if self._action is None:
            self._action = torch.empty_like(action, device="cpu", pin_memory=True)
        self._action.copy_(action, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return self._action.numpy().copy()
