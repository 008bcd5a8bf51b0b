"""Kernels, bytes and FLOPs of one training step on a GPU, counted without one::

    python -m benchmarks.kernels                                # Atari at full size
    python -m benchmarks.kernels --case all --compiled --save after
    python -m benchmarks.kernels --set BasicSettings.UseAmp=false
    python -m benchmarks.kernels --config config_files/atari_small.yaml
    python -m benchmarks.kernels --case storm

The step runs on fake CUDA tensors (see ``benchmarks.fake_cuda``), and every operation is counted as
the kernels that torch launches for it when it runs eagerly or is captured as a CUDA graph. ``GB``
are the bytes of each operation's inputs and outputs. ``GFLOP`` are those of products and
convolutions. ``ms as a graph`` is an estimate: every kernel takes the longest of :data:`LAUNCH`,
its bytes at :data:`BANDWIDTH` and its FLOPs at :data:`RATES`. With ``--compiled`` the losses, the
context and imagination are estimated as torch.compile would leave them; see ``benchmarks.fusion``.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import measure
from benchmarks.cases import CASES, OTHERS, STORED, case_parts
from benchmarks.fake_cuda import DEVICE, FakeCuda, cuda_autocast
from benchmarks.fusion import Operation, fuse
from pwm_core.commands.cli import run_command
from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.imagination import evaluate, imagine, imagined_step
from pwm_core.models.world_model import WorldModel
from pwm_core.training.agent import Agent
from pwm_core.training.methods import METHODS
from pwm_core.training.optimizer import Optimizer
from pwm_core.training.replay_buffer import ReplayBuffer, TransitionSpec

LAUNCH = 2.2e-6
"""Seconds that a small kernel takes inside a CUDA graph."""
BANDWIDTH = 3.0e12
"""Bytes per second, nine tenths of an H100's 3.35e12."""
RATES = {torch.bfloat16: 5e14, torch.float32: 2.5e14}
"""FLOP per second of a product, half an H100's dense bf16 and TF32."""
PARTS = (
    "world model, forward and backward",
    "context for imagination",
    "imagination",
    "actor-critic",
    "replay, clipping, AdamW, undo",
)

# What one operation launches where it is not one kernel. Views and empty tensors launch none.
_NONE = (
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"),
    *("detach", "lift_fresh", "alias", "device", "_record_function_enter_new"),
    *("_record_function_exit", "promote_types"),
)
_SEVERAL = {
    "native_layer_norm_backward": 2,  # of the input; of scale and offset
    "_fused_rms_norm_backward": 2,
    "native_batch_norm": 2,  # the statistics; the result
    "native_batch_norm_backward": 2,
    "_native_batch_norm_legit": 2,
    "slice_backward": 2,  # zeros; a copy
    "select_backward": 2,
    "masked_fill": 2,  # a copy; the values
    "logsumexp": 6,
    "binary_cross_entropy_with_logits": 5,
    "sort": 4,
    "embedding_dense_backward": 4,
    "index_put": 4,
    "index_put_": 4,
    "_foreach_norm": 2,
    "recurrence_backward": 2,  # the kernel; the sum over blocks of columns
    "norm_backward": 2,  # the kernel; the sum over groups of rows
}
_LISTS = {"_fused_adamw_": 36, "_foreach": 110}
"""Most tensors that one kernel over a list of tensors takes, by the start of the name."""
_READS_ONLY_WHAT_IT_PICKS = ("index", "gather", "embedding", "index_select", "sum_rows")
_READS_NOTHING = ("copy_", "zero_", "fill_", "scatter_", "scatter")
"""They write their first argument without reading it."""


@dataclass
class Count:
    """What one part of a step launches and moves."""

    kernels: int = 0
    gigabytes: float = 0.0
    gigaflops: float = 0.0
    seconds: float = 0.0
    names: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, kernels: int, moved: float, flops: float, dtype: torch.dtype) -> None:
        """Add one operation that launches ``kernels``."""
        rate = RATES[torch.bfloat16 if dtype == torch.bfloat16 else torch.float32]
        self.kernels += kernels
        self.names[name] = self.names.get(name, 0) + kernels
        self.gigabytes += moved / 1e9
        self.gigaflops += flops / 1e9
        self.seconds += max(kernels * LAUNCH, moved / BANDWIDTH, flops / rate)

    def row(self, part: str) -> dict[str, Any]:
        """The count as a row of the table."""
        return {"part": part, "kernels": self.kernels, "GB": self.gigabytes,
                "GFLOP": self.gigaflops, "ms as a graph": 1e3 * self.seconds}  # fmt: skip


def _bytes(tensor: Tensor) -> int:
    """The size of the memory that ``tensor`` covers; a repeated element counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(n for n, stride in sizes if stride) * tensor.element_size()


def _tensors(tree: Any) -> list[Tensor]:
    """The different tensors in ``tree``."""
    found = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return list({id(tensor): tensor for tensor in found}.values())


def _memory(tensor: Tensor) -> int:
    """The identity of the memory that ``tensor`` is a view of."""
    return tensor.untyped_storage()._cdata


def _launches(operator: Any, arguments: list[Any], results: list[Tensor]) -> int:
    """The number of kernels of one operation."""
    name = operator._schema.name.split("::")[-1]
    returned = operator._schema.returns
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returned)
    if name in _NONE or is_view or operator.namespace in ("prim", "profiler", "sym"):
        return 0
    for start, most in _LISTS.items():
        if name.startswith(start):
            count = len(arguments[0]) if isinstance(arguments[0], list | tuple) else len(results)
            return _SEVERAL.get(name, 1) * -(-count // most)
    if name == "convolution_backward":
        return len(results)
    if name == "native_batch_norm" and not arguments[5]:
        return 1  # it uses the running statistics
    return _SEVERAL.get(name, 1)


class Counter(FakeCuda):
    """Counts the kernels of the operations inside :meth:`part`, by the parts' names."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, Count] = {}
        self._part: str | None = None
        self._unit: tuple[int, bool] | None = None  # the compiled function, and its backward pass
        self._units = 0
        self._compiled: dict[str, list[Operation]] = {}
        self._alive: list[Any] = []  # so that no other tensor takes a memory's identity

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside under ``name``; parts may be nested."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, counted under ``name``."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, counted as if it was compiled."""

        def call(*args: Any, **kwargs: Any) -> Any:
            before, self._unit = self._unit, (self._units, False)
            self._units += 1
            with mock.patch("torch.compiler.is_compiling", return_value=True):
                try:
                    return function(*args, **kwargs)
                finally:
                    self._unit = before

        return call

    def finish(self) -> None:
        """Add the operations of compiled functions to the counts, fused."""
        for part, operations in self._compiled.items():
            count = self.counts.setdefault(part, Count())
            for kernel in fuse(operations):
                count.add(kernel.name, kernel.launches, kernel.moved, kernel.flops, kernel.dtype)

    def seen(self, operator: Any, arguments: list[Any], result: Any) -> None:
        """Add one operation to the current part."""
        results = _tensors(result)
        kernels = _launches(operator, arguments, results) if self._part else 0
        if not kernels:
            return
        name = operator._schema.name.split("::")[-1]
        count = self.counts.setdefault(self._part or "", Count())
        moved = self._moved(name, arguments, results)
        flops = flop_registry.get(operator.overloadpacket, lambda *_, **__: 0)
        operations = flops(*arguments, out_val=result)
        dtype = results[0].dtype if results else torch.float32
        unit = (-1, True) if self._in_backward and self._units else self._unit
        if unit is not None:
            inputs = _tensors(arguments)
            self._alive += [tensor.untyped_storage() for tensor in (*inputs, *results)]
            elements = max(tensor.numel() for tensor in [*inputs, *results])
            picks = name in _READS_ONLY_WHAT_IT_PICKS
            written = sum(map(_bytes, results))
            reads = {_memory(x): _bytes(x) for x in inputs}
            if picks:
                reads[_memory(inputs[0])] = min(_bytes(inputs[0]), written)
            if name in _READS_NOTHING:
                reads.pop(_memory(inputs[0]), None)
            writes = {_memory(x): _bytes(x) for x in results}
            self._compiled.setdefault(self._part or "", []).append(
                Operation(name, unit, kernels, operations, elements, reads, writes, dtype)
            )
            return
        count.add(name, kernels, moved, operations, dtype)

    @staticmethod
    def _moved(name: str, arguments: list[Any], results: list[Tensor]) -> int:
        """The bytes that one operation reads and writes."""
        inputs = _tensors(arguments)
        if name.startswith(("_foreach", "_fused_adamw")):
            return 2 * sum(map(_bytes, inputs))
        written = sum(map(_bytes, results))
        if name in _READS_ONLY_WHAT_IT_PICKS:
            return 2 * written + sum(map(_bytes, inputs[1:]))
        if name in _READS_NOTHING:
            return written + sum(map(_bytes, inputs[1:]))
        return written + sum(map(_bytes, inputs))


class _OnFakeCuda(Agent):
    """What makes an agent compute in bfloat16 on fake CUDA tensors."""

    def __init__(self, config: Config, *parts: Any) -> None:
        super().__init__(config, *parts)
        self._half = self._half_weights() if config.BasicSettings.UseAmp else None

    def autocast(self) -> Any:
        return cuda_autocast(self.config.BasicSettings.UseAmp)


class _FakeOptimizer(Optimizer):
    """An optimizer whose backward pass works on fake CUDA tensors."""

    counter: Counter

    def _apply(self, loss: Tensor) -> Tensor:
        self.adamw.zero_grad(set_to_none=True)
        with self.counter.backward():
            loss.backward()
        return self.step(loss)


def _fake_replay(spec: TransitionSpec, counter: Counter) -> ReplayBuffer:
    """A full replay on the device, without values."""
    replay = ReplayBuffer(spec, 1, STORED, torch.device("cpu"), storage="memory")
    replay._data = {name: counter.on_cuda(stored) for name, stored in replay._data.items()}
    replay._window = counter.on_cuda(replay._window)
    replay.device = replay.place = DEVICE
    replay.total = STORED
    return replay


def _prepare(optimizer: Optimizer, counter: Counter, part: str) -> None:
    """Let AdamW make its state, and count ``optimizer``'s own kernels under ``part``."""
    for parameter in optimizer.adamw.param_groups[0]["params"]:
        parameter.grad = torch.empty_like(parameter)
    optimizer.adamw.step()
    optimizer.__class__, optimizer.counter = _FakeOptimizer, counter
    optimizer.keep_buffers = counter.within(part, optimizer.keep_buffers)
    optimizer.step = counter.within(part, optimizer.step)


def _compile(agent: Agent, counter: Counter) -> None:
    """Count the functions that ``BasicSettings.Compile: compile`` compiles as compiled."""
    agent._world_model_loss = counter.compiled(agent._world_model_loss)
    agent._context = counter.compiled(agent._context)
    agent._imagine = partial(
        imagine, step=counter.compiled(imagined_step), evaluate=counter.compiled(evaluate)
    )
    agent._actor_critic_loss = counter.compiled(agent._actor_critic_loss)


def _fake_agent(config: Config, *modules: nn.Module) -> Agent:
    """The agent of the configured method on fake CUDA tensors."""
    method = METHODS[config.Models.Method]
    return type("FakeAgent", (_OnFakeCuda, method), {})(config, *modules, DEVICE)


def count_step(
    case: str,
    overrides: list[str] | None = None,
    *,
    files: str | None = None,
    compiled: bool = False,
) -> dict[str, Count]:
    """The counts of one training step by the names in :data:`PARTS`.

    Args:
        case: a key of ``benchmarks.cases.CASES`` or ``OTHERS``.
        overrides: of its config, as ``Section.Key=value``.
        files: YAML files with commas between them, laid over the full config of the case's domain;
            None for the case's own config.
        compiled: estimate the compiled step.
    """
    known = (CASES | OTHERS)[case]
    config = load_config(
        files or known, defaults=known.partition(",")[0], overrides=overrides or []
    )
    model, context, imagination, actor_critic, rest = PARTS
    counter = Counter()
    with torch.device("meta"):  # nothing is initialised
        codec, policy, spec = case_parts(case, config)
        modules = WorldModel(config.Models, codec, policy), ActorCritic(config.Models, policy)
    for module in modules:
        counter.move(module)
    replay = _fake_replay(spec, counter)
    with counter:
        agent = _fake_agent(config, *modules)
        for optimizer in agent.optimizers.values():
            _prepare(optimizer, counter, rest)
        if compiled:
            _compile(agent, counter)
        agent._context = counter.within(context, agent._context)
        with counter.part(rest):
            batches = agent.draw(replay)
        with counter.part(model):
            agent.train_world_model(batches[0])
        with counter.part(imagination):
            trajectory = agent.imagine(*batches)
        with counter.part(actor_critic):
            agent.train_actor_critic(trajectory)
    counter.finish()
    return {part: counter.counts[part] for part in PARTS}


def table(counts: dict[str, Count]) -> list[dict[str, Any]]:
    """One row for each part, and their sum."""
    rows = [count.row(part) for part, count in counts.items()]
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "part"}
    return [*rows, {"part": "whole step", **total}]


def main() -> None:
    """Print the tables; with ``--save NAME`` also write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=[*CASES, *OTHERS, "all"], default="atari")
    parser.add_argument(
        "--config",
        metavar="FILE[,FILE...]",
        help="YAML files laid over the full config of the case's domain, in this order",
    )
    parser.add_argument("--set", action="append", default=[], metavar="Section.Key=value")
    parser.add_argument("--compiled", action="store_true", help="also estimate the compiled step")
    parser.add_argument("--top", type=int, default=0, help="also the N most frequent operations")
    parser.add_argument("--save", metavar="NAME", help="benchmarks/results/kernels_NAME.json")
    arguments = parser.parse_args()
    rows = []
    cases = CASES if arguments.case == "all" else [arguments.case]
    for case, compiled in itertools.product(cases, (False, True)[: 1 + arguments.compiled]):
        counts = count_step(case, arguments.set, files=arguments.config, compiled=compiled)
        found = table(counts)
        step = "compiled, then captured" if compiled else "captured"
        print(f"{case}, {step}\n{measure.table(found)}\n")
        for part, count in counts.items() if arguments.top else ():
            names = sorted(count.names.items(), key=lambda item: -item[1])[: arguments.top]
            print(f"{part}: {', '.join(f'{name} {number}' for name, number in names)}\n")
        changes = " ".join([*([arguments.config] if arguments.config else []), *arguments.set])
        rows += [{"case": case, "step": step, "changes": changes, **row} for row in found]
    if arguments.save:
        path = measure.save(f"kernels_{arguments.save}", rows, torch.device("cpu"))
        print(f"saved {path}")


if __name__ == "__main__":
    run_command(main)
