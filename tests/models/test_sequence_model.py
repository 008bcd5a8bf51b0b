"""The sequence model: its equations, and that its parallel and its recurrent way agree."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.models.scan import available_backends
from pwm_core.models.sequence_models.linear_attention import LinearAttention, LinearAttentionBlock
from pwm_core.models.sequence_models.memory import RecurrentMemory
from pwm_core.models.types import Context
from tests.helpers import (
    ACTIONS,
    CLASSES,
    STOCH,
    WIDTH,
    Data,
    dense,
    disturb,
    load_small,
    replace_at,
    written_out,
)

ATARI = "config_files/atari.yaml"
FIRSTS = ((0, 0), (0, 4), (1, 3), (1, 4), (2, 6))
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
EXACT = {"rtol": 1e-9, "atol": 1e-10}
"""In float64."""


@pytest.mark.parametrize(("fan", "std"), [("width", 512**-0.5), ("mean", 256.5**-0.5)])
def test_the_spread_of_the_mixing_weights_is_as_configured(fan: str, std: float) -> None:
    overrides = (f"Models.WorldModel.MixFan={fan}", "Models.WorldModel.Blocks=40")
    torch.manual_seed(0)
    model = LinearAttention(load_config(ATARI, overrides=overrides).Models, ACTIONS)
    weights = torch.stack([block.mix for block in model.blocks])  # 40 x 512 of them
    assert weights.std().item() == pytest.approx(std, rel=0.02)
    assert weights.abs().max() < 2.3 * std  # cut off


def make_sequence(
    config: Config, rows: int = 3, steps: int = 9
) -> tuple[LinearAttention, Tensor, Tensor, Tensor]:
    """A sequence model in eval mode, and its inputs: latents, actions and is_first."""
    torch.manual_seed(0)
    model = LinearAttention(config.Models, ACTIONS).eval()
    disturb(model)
    is_first = Data(rows, steps, FIRSTS).batch(config).is_first
    latent = torch.randn(rows, steps, STOCH * CLASSES)
    return model, latent, torch.randn(rows, steps, ACTIONS), is_first


SCANS = [f"Scan={name}" for name in available_backends(torch.device("cpu"))]
VARIANTS = [(scan,) for scan in SCANS]
VARIANTS += [("ScanChunk=2",), ("ScanChunk=64",), ("OutputTanh=true", "RMSNorm=false")]
VARIANTS += [("BlockAct=Mish", "HeadDivisor=8", "Blocks=3")]


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=",".join)
@torch.no_grad()
def test_the_parallel_pass_is_the_recurrent_steps(variant: tuple[str, ...], indices: bool) -> None:
    config = load_small(*(f"Models.WorldModel.{change}" for change in variant))
    model, latent, action, is_first = make_sequence(config)
    model, latent, action = model.double(), latent.double(), action.double()
    if indices:
        latent = torch.randint(CLASSES, (*is_first.shape, STOCH))
    deter, history = model(latent, action, is_first, return_history=True)
    alone, no_history = model(latent, action, is_first)
    torch.testing.assert_close(alone, deter)
    assert no_history is None
    assert len(history.blocks) == config.Models.WorldModel.Blocks
    state = model.initial_state(3, latent.device)
    for t in range(latent.shape[1]):
        state = state.reset(is_first[:, t])
        stepped = model.step(latent[:, t], action[:, t], state)
        torch.testing.assert_close(deter[:, t], stepped, **EXACT)
        for block, parallel in enumerate(history.blocks):
            memory = state.memories[block].memory
            torch.testing.assert_close(dense(parallel.memory)[:, t], memory, **EXACT)
            torch.testing.assert_close(parallel.previous[:, t], state.previous[block], **EXACT)
    if config.Models.WorldModel.OutputTanh:
        assert deter.abs().max() < 1
    assert deter.std() > 0.1


@torch.no_grad()
def test_nothing_before_a_reset_and_nothing_later_reaches_a_step() -> None:
    model, latent, action, is_first = make_sequence(load_small())  # row 0 begins anew at step 4
    before, _ = model(latent, action, is_first)
    for step, reached in ((3, [3]), (4, [4, 5, 6, 7, 8])):
        after, _ = model(replace_at(latent, 0, step, latent[1, 0]), action, is_first)
        changed = ((before - after).abs() > 1e-4).any(-1)
        assert changed.nonzero().tolist() == [[0, t] for t in reached]


def block_by_hand(block: LinearAttentionBlock, u: Tensor, is_first: Tensor) -> Tensor:
    """The paper's equations of a block, for one row and one step at a time, in float64."""
    w = {name: value.double() for name, value in block.state_dict().items()}
    projections = w["projections.weight"].chunk(4)
    query, key, value, receptance = projections
    assert query.shape == (block.inner, block.width)
    mu = torch.sigmoid(w["mix"] + 1) if "mix" in w else 1.0
    outputs = torch.zeros_like(u).double()
    for b in range(u.shape[0]):
        state = torch.zeros(block.inner, block.inner).double()
        before = torch.zeros(block.width).double()
        for t in range(u.shape[1]):
            if is_first[b, t]:
                state, before = torch.zeros_like(state), torch.zeros_like(before)
            x = u[b, t].double()
            q, k = 1 + F.elu(query @ x), 1 + F.elu(key @ x)
            v = torch.sigmoid(receptance @ x) * (value @ x)
            if "decay.weight" in w:
                g = torch.sigmoid(w["decay.weight"] @ (mu * x + (1 - mu) * before))
            else:
                g = torch.sigmoid(w["decay.bias"]) if "decay.bias" in w else torch.ones(len(q))
            state = g[:, None] * state + k[:, None] * v[None, :]
            o = q @ state
            if "attention_norm.weight" in w:
                o = o / (o.square().mean() + 1e-5).sqrt() * w["attention_norm.weight"]
            norm = (x.shape, w["norm.weight"], w["norm.bias"], 1e-5)
            y = F.layer_norm(w["output.weight"] @ o + x, *norm)
            a, b_ = (w["gated.gate.weight"] @ y + w["gated.gate.bias"]).chunk(2)
            norm = (x.shape, w["gated.norm.weight"], w["gated.norm.bias"], 1e-5)
            outputs[b, t] = F.layer_norm(a * torch.sigmoid(a) * b_ + y, *norm)
            before = x
    return outputs


DECAY = {"mix", "decay.weight", "decay.bias"}


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [
        ("RMSNorm=true", {"mix", "decay.weight"}),
        ("RMSNorm=false", {"mix", "decay.weight"}),
        ("TokenMixing=false", {"decay.weight"}),
        ("Decay=learned", {"decay.bias"}),
        ("Decay=none", set()),
    ],
)
@torch.no_grad()
def test_a_block_computes_the_equations(variant: str, parameters: set[str]) -> None:
    config = load_small(f"Models.WorldModel.{variant}")
    torch.manual_seed(0)
    block = LinearAttentionBlock(config.Models).eval()
    disturb(block)
    assert block.state_dict().keys() & DECAY == parameters
    u, is_first = torch.randn(3, 9, WIDTH), Data(3, 9, FIRSTS).batch(config).is_first
    found, _ = block(u, is_first)
    torch.testing.assert_close(found.double(), block_by_hand(block, u, is_first), **CLOSE)


@pytest.mark.parametrize("scan", [*SCANS, "ScanChunk=3"])
@pytest.mark.parametrize("steps", [slice(0, 9), slice(5, 9), slice(8, 9), slice(2, 6)], ids=str)
@torch.no_grad()
def test_imagining_on_is_the_recurrent_steps(scan: str, steps: slice) -> None:
    """The sequence model steps on from its replayed states as from states in full."""
    model, latent, action, is_first = make_sequence(load_small(f"Models.WorldModel.{scan}"))
    model, latent, action = model.double(), latent.double(), action.double()
    deter, history = model(latent, action, is_first, return_history=True)
    deter = deter[:, steps].flatten(0, 1)
    count = len(deter)
    zero = torch.rand(count) < 0.3
    imagined = history.start(steps, zero, 15)
    recurrent = written_out(Context(deter, deter, zero, steps, history))
    for _ in range(15):
        z, a = (torch.randn(count, width).double() for width in (latent.shape[-1], ACTIONS))
        found, expected = model.step(z, a, imagined), model.step(z, a, recurrent)
        torch.testing.assert_close(found, expected, **EXACT)


@torch.no_grad()
def test_a_dropped_token_passes_the_state_through() -> None:
    """Each state equals the previous one (zeros at a reset) or the one that eval mode computes."""
    config = load_small("Models.WorldModel.Dropout=0.4", "Models.WorldModel.Scan=sequential")
    torch.manual_seed(0)
    block = LinearAttentionBlock(config.Models).train()
    is_first = torch.rand(20, 30) < 0.1
    u = torch.randn(20, 30, WIDTH)
    _, state = block(u, is_first, return_history=True)
    states = dense(state.memory)
    block.eval()
    dropped = torch.zeros(20, 30)
    for t in range(30):
        mask = is_first[:, t, None] if t else torch.ones(20, 1, dtype=torch.bool)
        before = states[:, t - 1].masked_fill(mask.unsqueeze(-1), 0.0)
        memory = RecurrentMemory(before)
        block.step(u[:, t], u[:, t - 1].masked_fill(mask, 0.0), memory)
        passed = (states[:, t] == before).flatten(1).all(1)
        torch.testing.assert_close(states[~passed, t], memory.memory[~passed], **CLOSE)
        dropped[:, t] = passed
    assert 0.33 < dropped.mean() < 0.47  # 0.4, and 3.5 standard deviations of 600 tokens
    assert dropped[is_first].mean() > 0.2
    for share in (dropped.mean(0), dropped.mean(1)):  # tokens are dropped one by one
        assert 0 < share.min() < share.max() < 1


@torch.no_grad()
def test_dropout_near_1_keeps_the_state_and_eval_mode_drops_nothing() -> None:
    config = load_small("Models.WorldModel.Dropout=0.999")
    torch.manual_seed(0)
    block, is_first = LinearAttentionBlock(config.Models), torch.zeros(2, 8, dtype=torch.bool)
    _, state = block.train()(torch.randn(2, 8, WIDTH), is_first, return_history=True)
    assert (dense(state.memory) == 0).all()
    _, state = block.eval()(torch.randn(2, 8, WIDTH), is_first, return_history=True)
    assert (dense(state.memory).flatten(2).abs().amax(2) > 0).all()


@torch.no_grad()
def test_dropout_reaches_both_outputs_of_a_block() -> None:
    config = load_small("Models.WorldModel.Dropout=0.25")
    dropouts = [m for m in LinearAttentionBlock(config.Models).modules() if type(m) is nn.Dropout]
    assert [dropout.p for dropout in dropouts] == [0.25, 0.25]
