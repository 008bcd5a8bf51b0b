"""Copies of the weights in bfloat16: the numbers of autocast, and the weights come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pwm_core.models.networks import LatentLinear, head
from pwm_core.training.half_weights import HalfWeights


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    network = head(6, 16, 2, "SiLU", 4)
    nn.init.normal_(network[-1].weight)
    return network


@torch.no_grad()
def test_the_numbers_are_those_of_autocast_also_after_an_update() -> None:
    network, x = make_network(), torch.randn(5, 6)
    half = HalfWeights([network])
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            expected = network(x)
            with half.used():
                assert network[0].weight.dtype == torch.bfloat16
                assert torch.equal(network(x), expected)
        for parameter in network.parameters():
            parameter.mul_(1.5)


def test_the_weights_come_back_also_after_an_error() -> None:
    network = nn.Sequential(make_network(), LatentLinear(2, 3, 4, 5))
    before = dict(network.named_parameters())
    half = HalfWeights([network])
    with pytest.raises(RuntimeError, match="mat1 and mat2"), half.used():
        network(torch.zeros(1, 999))
    after = dict(network.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
