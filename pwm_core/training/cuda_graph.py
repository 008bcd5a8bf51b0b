"""CUDA graphs: thousands of small kernels launched with one call."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

EAGER_CALLS = 3
"""Calls made eagerly before one is recorded, so that every buffer and library handle exists."""

Output = TypeVar("Output")


class Recorded(Generic[Output]):
    """A function without arguments whose CUDA work is recorded once and then replayed.

    Its first :data:`EAGER_CALLS` calls run as they are. What it reads must stay where it is: inputs
    are copied into the same tensors before each call, and state is moved on in place. What it
    returns is overwritten by the next call, so use it before. Random numbers are drawn anew in
    every replay, since torch advances its generator with it.
    """

    def __init__(self, function: Callable[[], Output]) -> None:
        self._function = function
        self._stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0
        self._output: Output

    def __call__(self) -> Output:
        """Run, record or replay."""
        self._calls += 1
        if self._calls <= EAGER_CALLS:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                output = self._function()
            torch.cuda.current_stream().wait_stream(self._stream)
            return output
        if self._graph is None:
            gc.collect()  # an old graph must not be freed in the middle of the recording
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._output = self._function()
        self._graph.replay()
        return self._output
