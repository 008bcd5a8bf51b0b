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

ALONE = (
    *("mm", "addmm", "bmm", "baddbmm", "mv", "convolution", "convolution_backward", "sort"),
    *("cumsum", "cumprod", "scatter_add", "scatter_add_", "index_put", "index_put_", "topk"),
    *("_embedding_bag", "_embedding_bag_forward_only", "embedding_dense_backward", "randint"),
    *("imagined_step", "recurrence", "recurrence_backward", "norm", "norm_backward"),
)
"""Operations that no other is fused with."""
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
    """

    name: str
    unit: object
    kernels: int
    flops: float
    elements: int
    reads: dict[int, int]
    writes: dict[int, int]


@dataclass
class Kernel:
    """One kernel of the estimate, named after its first operation."""

    name: str
    launches: int = 1
    flops: float = 0.0
    moved: int = 0
    members: list[int] = field(default_factory=list)


def _groups(operations: list[Operation]) -> list[int]:
    """For each operation, the number of the group that it becomes part of.

    An operation joins the newest group that makes one of its inputs, if both go through as many
    elements, belong to one unit, and no input comes from a kernel that itself follows that group.
    """
    made: dict[int, int] = {}  # memory -> the group that wrote it last
    depth: list[int] = []  # the depth of each group, counted in kernels that stand alone
    open_: list[tuple[object, int] | None] = []  # unit and elements; None: nothing may join
    found = []
    for operation in operations:
        inputs = {made[memory] for memory in operation.reads if memory in made}
        level = max((depth[group] + (open_[group] is None) for group in inputs), default=0)
        key = (operation.unit, operation.elements)
        joined = None
        if operation.name not in ALONE:
            fitting = [group for group in inputs if open_[group] == key and depth[group] == level]
            joined = max(fitting, default=None)
        if joined is None:
            joined = len(depth)
            depth.append(level)
            open_.append(None if operation.name in ALONE else key)
        found.append(joined)
        made |= dict.fromkeys(operation.writes, joined)
    return found


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
        kernels.setdefault(group, Kernel(listed[index].name)).members.append(index)
    readers: dict[int, set[int]] = {}
    for operation, group in zip(listed, groups, strict=True):
        for memory in operation.reads:
            readers.setdefault(memory, set()).add(group)
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
