"""An estimate of the kernels that torch.compile would leave of a sequence of operations.

Inductor cannot generate code for CUDA without CUDA, so its main rules are applied here to the
operations that a step runs. Elementwise operations, reductions and random numbers that follow from
each other and go through the same number of elements become one kernel, and so do a normalisation
and what is done with its result. Products, convolutions, sorts, scans, scatters and the project's
own operators stay kernels of their own, and nothing is fused across them, or between two compiled
functions, or between a forward and a backward pass. Bytes are those that such a kernel reads from
others and writes for others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

ALONE = (
    *("mm", "addmm", "bmm", "baddbmm", "mv", "convolution", "convolution_backward", "sort"),
    *("cumsum", "cumprod", "scatter_add", "scatter_add_", "index_put", "index_put_", "topk"),
    *("_embedding_bag", "_embedding_bag_forward_only", "embedding_dense_backward", "randint"),
    *("imagined_step", "recurrence", "recurrence_backward", "norm", "norm_backward"),
)
"""Operations that no other is fused with."""
REDUCED = (
    *("sum", "mean", "argmax", "amax", "_softmax", "_log_softmax", "logsumexp", "prod"),
    *("native_layer_norm", "native_layer_norm_backward", "native_batch_norm", "_fused_rms_norm"),
    *("native_batch_norm_backward", "_fused_rms_norm_backward", "linalg_vector_norm"),
    *("_softmax_backward_data", "_log_softmax_backward_data"),
)
"""Operations whose results are not computed again by each reader."""
CREATED = ("zeros", "ones", "full", "arange", "zeros_like", "ones_like", "full_like", "new_zeros",
           "new_ones", "new_full", "scalar_tensor")  # fmt: skip
"""Constants, which become part of every kernel that reads them, unless it stands alone."""


@dataclass
class Operation:
    """One operation of a step.

    Attributes:
        name: of the operator, without its namespace.
        unit: the compiled function that it belongs to.
        kernels: how many it launches eagerly.
        flops: of a product.
        elements: the number of elements that it goes through.
        reads, writes: the bytes by the identity of the memory.
        dtype: of its result.
    """

    name: str
    unit: object
    kernels: int
    flops: float
    elements: int
    reads: dict[int, int]
    writes: dict[int, int]
    dtype: torch.dtype


@dataclass
class Kernel:
    """One kernel of the estimate, named after its first operation, whose dtype it has."""

    name: str
    dtype: torch.dtype
    launches: int = 1
    flops: float = 0.0
    moved: int = 0
    members: list[int] = field(default_factory=list)


class _Groups:
    """Groups of operations that become one kernel each, by the number of their first one."""

    def __init__(self) -> None:
        self.of: list[int] = []  # the group of each operation
        self.depth: dict[int, int] = {}  # counted in kernels that stand alone
        self.key: dict[int, tuple[object, int] | None] = {}  # None: nothing may join

    def add(self, operation: Operation, inputs: set[int]) -> None:
        """Add an operation that reads what the groups ``inputs`` wrote.

        It joins those that go through as many elements in the same unit, unless another input
        comes from a kernel that follows them. All that it joins become one.
        """
        alone = operation.name in ALONE
        level = max((self.depth[group] + (self.key[group] is None) for group in inputs), default=0)
        key = None if alone else (operation.unit, operation.elements)
        joined = [g for g in inputs if key and self.key[g] == key and self.depth[g] == level]
        group = min(joined, default=len(self.of))
        if len(joined) > 1:
            self.of = [group if one in joined else one for one in self.of]
        self.of.append(group)
        self.depth[group], self.key[group] = level, key


def _groups(operations: list[Operation]) -> list[int]:
    """For each operation, the number of the group that it becomes part of."""
    groups = _Groups()
    wrote: dict[int, int] = {}  # memory -> the operation that wrote it last
    for index, operation in enumerate(operations):
        inputs = {groups.of[wrote[memory]] for memory in operation.reads if memory in wrote}
        groups.add(operation, inputs)
        wrote |= dict.fromkeys(operation.writes, index)
    return _inlined(operations, groups.of)


def _readers(operations: list[Operation], groups: list[int]) -> dict[int, set[int]]:
    """The groups that read each memory."""
    found: dict[int, set[int]] = {}
    for operation, group in zip(operations, groups, strict=True):
        for memory in operation.reads:
            found.setdefault(memory, set()).add(group)
    return found


def _inlined(operations: list[Operation], groups: list[int]) -> list[int]:
    """Make groups without reductions part of the one group that reads them, if it is but one.

    It may go through more elements, as where a vector is added to the rows of a matrix.
    """
    members: dict[int, list[Operation]] = {}
    for operation, group in zip(operations, groups, strict=True):
        members.setdefault(group, []).append(operation)
    readers = _readers(operations, groups)
    into: dict[int, int] = {}
    for group, own in reversed(members.items()):
        written = {memory for operation in own for memory in operation.writes}
        others = {into.get(one, one) for memory in written for one in readers.get(memory, ())}
        others.discard(group)
        if len(others) != 1 or any(operation.name in ALONE + REDUCED for operation in own):
            continue
        (reader,) = others
        same = members[reader][0].unit == own[0].unit
        if same and members[reader][0].name not in ALONE:
            into[group] = reader
    return [into.get(group, group) for group in groups]


def _without_constants(operations: list[Operation]) -> list[Operation]:
    """Leave out the constants that no operation reads from memory."""
    needed = {
        memory
        for operation in operations
        if operation.name in ALONE or operation.name.endswith("_")  # it writes into the constant
        for memory in (*operation.reads, *operation.writes)
    }
    return [
        operation
        for operation in operations
        if operation.name not in CREATED or needed.intersection(operation.writes)
    ]


def fuse(operations: Iterable[Operation]) -> list[Kernel]:
    """The kernels that ``operations`` become, in the order of their first operation."""
    listed = _without_constants(list(operations))
    groups = _groups(listed)
    kernels: dict[int, Kernel] = {}
    for index, group in enumerate(groups):
        kernels.setdefault(group, Kernel(listed[index].name, listed[index].dtype)).members.append(
            index
        )
    readers = _readers(listed, groups)
    for group, kernel in kernels.items():
        members = [listed[index] for index in kernel.members]
        kernel.flops = sum(operation.flops for operation in members)
        if len(members) == 1:
            kernel.launches = members[0].kernels if members[0].name in ALONE else 1
        written: dict[int, int] = {}
        read: dict[int, int] = {}
        for operation in members:
            for memory, size in operation.reads.items():
                if memory not in written:
                    read[memory] = max(size, read.get(memory, 0))
            written |= operation.writes
        outside = (size for memory, size in written.items() if readers.get(memory, {-1}) != {group})
        kernel.moved = sum(read.values()) + sum(outside)
    return list(kernels.values())
