"""CUDA graphs: thousands of small kernels launched with one call.

A full-size training step launches thousands of small kernels. Launching them one by one from Python
takes many times longer than computing them. A CUDA graph captures them once and then launches all
of them with one call. :class:`CapturedUpdate` and :class:`CapturedActing` use it.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from pwm_core.models.types import Batch, Metrics

EAGER_CALLS = 3
"""Number of eager calls before the capture. They create every buffer and library handle."""

Output = TypeVar("Output")
Step = Callable[[], Metrics]


class CaptureError(Exception):
    """A function could not be captured; its text is the reason in one line."""


class CudaCapture:
    """Captures functions on a stream of their own; the default of :class:`CudaGraph`."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    def run(self, function: Callable[[], Output]) -> Output:
        """Call ``function`` eagerly, on the stream that a later capture uses."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            output = function()
        torch.cuda.current_stream().wait_stream(self._stream)
        return output

    def capture(self, function: Callable[[], Output]) -> Callable[[], Output]:
        """A function that replays ``function``'s CUDA work and returns its output.

        Raises:
            RuntimeError: it cannot be captured. Eager work can go on.
        """
        gc.collect()  # freeing an old graph during the capture would be an error
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        before = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=self._stream):
                output = function()
        except RuntimeError:
            self._leave_capture(before, pool)
            raise

        def replay() -> Output:
            graph.replay()
            return output

        return replay

    def _leave_capture(self, before: torch.cuda.Stream, pool: Any) -> None:
        """Undo what torch leaves as it is where a capture cannot even be ended.

        That is the current stream, the generator, which would refuse to draw outside a capture, and
        the allocator, which would keep the capture's memory.
        """
        torch.cuda.set_stream(before)
        device = before.device_index
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())  # a clone is in no capture
        with contextlib.suppress(RuntimeError):  # torch has ended it
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)


class CudaGraph(Generic[Output]):
    """A function without arguments whose CUDA work is captured once and then replayed.

    The first :data:`EAGER_CALLS` calls run eagerly. The tensors that the function reads must stay
    in the same memory: inputs are copied into the same tensors before each call, and state is
    updated in place. Each call overwrites the result of the previous one. Random numbers differ in
    every replay, because torch advances its generator with the graph. A capture that fails replaces
    the generator's state, so all graphs of the process are then captured anew.

    Args:
        function: the function.
        capture: how it is captured. Tests on a CPU bring something else than CUDA's way.
    """

    _failures = 0  # captures that have failed in this process

    def __init__(
        self, function: Callable[[], Output], capture: Callable[[], Any] = CudaCapture
    ) -> None:
        self._function, self._capture = function, capture()
        self._replay: Callable[[], Output] | None = None
        self._calls = self._failures_before = 0

    def __call__(self) -> Output:
        """Run the function eagerly, capture it, or replay it.

        Raises:
            CaptureError: it cannot be captured; nothing of this call has run.
        """
        self._calls += 1
        if self._calls <= EAGER_CALLS:
            return self._capture.run(self._function)
        if self._replay is None or self._failures_before != CudaGraph._failures:
            self._replay, self._failures_before = None, CudaGraph._failures
            try:
                self._replay = self._capture.capture(self._function)
            except RuntimeError as error:  # CUDA's errors and torch.OutOfMemoryError
                CudaGraph._failures += 1
                first = error.__context__ or error  # the capture's end fails too, and says less
                raise CaptureError(str(first).splitlines()[0]) from None
        return self._replay()


class CapturedUpdate:
    """Sampling and ``Agent.update`` as CUDA graphs, one for each combination of flags.

    Where capturing fails, and where the check finds a difference, one line says so, and all updates
    run eagerly.

    Args:
        update: ``Agent.update``.
        sample: draws the batches of an update.
        on_device: whether ``sample`` runs on the device and so becomes part of the graph. If not,
            the batches are copied into the tensors that the graph reads.
        check: compares an eager and a captured step before the first update of both parts, as
            :func:`pwm_core.training.graph_check.difference` does; returns what differs, or None.
        capture: see :class:`CudaGraph`.

    Attributes:
        eager: whether updates run eagerly, because the graph cannot be used.
    """

    def __init__(
        self,
        update: Callable[..., Metrics],
        sample: Callable[[], tuple[Batch, ...]],
        *,
        on_device: bool,
        check: Callable[[Step, Step], str | None] | None = None,
        capture: Callable[[], Any] = CudaCapture,
    ) -> None:
        self._update, self._sample, self._on_device = update, sample, on_device
        self._check, self._capture = check, capture
        self._graphs: dict[tuple[bool, bool], CudaGraph[Metrics]] = {}
        self._batches: tuple[Batch, ...] = ()
        self.eager = False

    def __call__(self, *, world_model: bool, actor_critic: bool) -> Metrics:
        """Sample batches and update on them; metrics are scalars on the device."""
        due = (world_model, actor_critic)
        try:
            if self._check and all(due) and not self.eager:
                check, self._check = self._check, None
                found = check(lambda: self._eagerly(due), lambda: self._captured(due))
                if found:
                    raise CaptureError(f"it differs from the eager one: {found}")
            if not self.eager:
                return self._captured(due)
        except CaptureError as error:
            self.eager = True
            self.reset()
            print(f"note: updates run eagerly, because the CUDA graph cannot be used: {error}")
        return self._eagerly(due)

    def _eagerly(self, due: tuple[bool, bool]) -> Metrics:
        return self._update(*self._sample(), world_model=due[0], actor_critic=due[1])

    def _captured(self, due: tuple[bool, bool]) -> Metrics:
        if not self._on_device:
            self._copy_in(self._sample())
        if due not in self._graphs:
            self._graphs[due] = CudaGraph(
                lambda: self._update(
                    *(self._batches or self._sample()),
                    world_model=due[0],
                    actor_critic=due[1],
                ),
                self._capture,
            )
        return self._graphs[due]()

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

    Attributes:
        eager: whether it runs eagerly, because capturing failed.
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
        self._act = lambda: act(*self._inputs)
        self._graph = CudaGraph(self._act)
        self._action: Tensor | None = None
        self.eager = False

    def __call__(self, obs: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        """The actions (N, ...); it waits for the device."""
        for host, device, value in zip(self._host, self._inputs, (obs, is_first), strict=True):
            host.copy_(torch.as_tensor(value))
            device.copy_(host, non_blocking=True)
        try:
            action = self._act() if self.eager else self._graph()
        except CaptureError as error:
            print(f"note: acting runs eagerly, because the CUDA graph cannot be used: {error}")
            self.eager = True
            action = self._act()
        if self._action is None:
            self._action = torch.empty_like(action, device="cpu", pin_memory=True)
        self._action.copy_(action, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return self._action.numpy().copy()
