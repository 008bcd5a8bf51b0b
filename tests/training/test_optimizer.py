"""The optimiser's state on another device than it was written on."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pwm_core.training.optimizer import Optimizer


def make_optimizer() -> tuple[nn.Linear, Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    return module, Optimizer(module, lr=1e-2, eps=1e-8, weight_decay=0.0, clip=1.0)


def update(module: nn.Linear, optimizer: Optimizer) -> None:
    with optimizer.update() as apply:
        apply(module(torch.ones(4, 3)).square().sum())


def test_a_state_written_on_cuda_continues_on_a_cpu() -> None:
    """A CUDA run saves ``capturable=True``; a captured graph in turn needs it after a CPU run."""
    (module, optimizer), (other, resumed) = make_optimizer(), make_optimizer()
    update(module, optimizer)
    update(other, resumed)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["optimizer"]["param_groups"]:
        group["capturable"] = True
    resumed.load_state_dict(state)
    assert [group["capturable"] for group in resumed.adamw.param_groups] == [False]
    update(module, optimizer)
    update(other, resumed)
    assert torch.equal(module.weight, other.weight)
