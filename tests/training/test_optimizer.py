"""The optimiser's state on another device, or under another config, than it was written."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pwm_core.training.optimizer import Optimizer


def make_optimizer(lr: float = 1e-2) -> tuple[nn.Linear, Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    return module, Optimizer(module, lr=lr, eps=1e-8, weight_decay=0.0, clip=1.0)


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


def test_a_config_that_was_changed_counts_and_not_the_saved_one() -> None:
    (module, optimizer), (other, resumed) = make_optimizer(), make_optimizer(lr=1e-3)
    update(module, optimizer)
    update(other, resumed)
    other.load_state_dict(module.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = module.weight.detach().clone()
    update(module, optimizer)
    update(other, resumed)
    assert torch.allclose(other.weight - before, (module.weight - before) / 10, rtol=1e-4)
