"""The attention model: STORM's equations, its positions, its windows and its limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pwm_core.config_file import load_config
from pwm_core.errors import UserError
from pwm_core.models.sequence_models.attention import Attention, AttentionBlock, visible
from tests.helpers import (
    ACTIONS,
    CLASSES,
    STOCH,
    Data,
    count_parameters,
    disturb,
    load_small,
    make_agent,
)

EXACT = {"rtol": 1e-9, "atol": 1e-10}
ATTENTION = "Models.WorldModel.SequenceModel=attention"


def make_model(*overrides: str) -> Attention:
    """A small model in float64 and eval mode, with noise on its parameters."""
    torch.manual_seed(0)
    config = load_small(ATTENTION, *(f"Models.WorldModel.{change}" for change in overrides))
    model = Attention(config.Models, ACTIONS).eval()
    disturb(model)
    return model.double()


def make_inputs(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    latent = torch.randn(rows, steps, STOCH * CLASSES, generator=generator).double()
    return latent, torch.randn(rows, steps, ACTIONS, generator=generator).double()


def test_the_number_of_parameters_is_storms() -> None:
    overrides = (ATTENTION, "Models.Act=ReLU")
    model = Attention(load_config("config_files/atari.yaml", overrides=overrides).Models, 6)
    parts = model.input_layer, model.position, model.norm, model.blocks
    assert [count_parameters(part) for part in parts] == [791_552, 32_768, 1_024, 4_201_472]
    assert count_parameters(model) == 791_552 + 32_768 + 1_024 + 4_201_472


def test_a_step_sees_itself_and_the_steps_before_in_its_episode() -> None:
    seen = visible(torch.tensor([[0, 0, 1, 1]]))[0]
    assert seen.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]


@torch.no_grad()
def test_the_model_computes_storms_equations() -> None:
    """One step and one head at a time, over the steps of its episode."""
    model = make_model("Heads=4", "Blocks=2")
    latent, action = make_inputs(2, 7)
    is_first = Data(2, 7, ((0, 3), (1, 5))).batch(load_small()).is_first
    found, _ = model(latent, action, is_first)
    u = model.input_layer(action, latent)
    for row in range(2):
        begin = 0
        for t in range(7):
            begin = t if is_first[row, t] else begin
            x = u[row, begin : t + 1] + model.position.weight[: t + 1 - begin]
            x = _norm(x, model.norm)
            for block in model.blocks:
                x = _block(x, block)
            torch.testing.assert_close(found[row, t], x[-1], **EXACT)


def _norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, 1e-6)


def _block(x: Tensor, block: AttentionBlock) -> Tensor:
    """A block by its equations, for one episode (n, D)."""
    count, width = x.shape
    size = width // block.heads
    parts = [x @ weight.T for weight in block.projections.weight.chunk(3)]
    query, key, value = (part.view(count, block.heads, size) for part in parts)
    attended = torch.zeros_like(x).view(count, block.heads, size)
    for i in range(count):
        for head in range(block.heads):
            scores = key[: i + 1, head] @ query[i, head] / math.sqrt(size)
            attended[i, head] = scores.softmax(0) @ value[: i + 1, head]
    y = _norm(attended.view(count, width) @ block.output.weight.T + x, block.attention_norm)
    first, _, second, _ = block.feed_forward
    hidden = (y @ first.weight.T + first.bias).relu()
    return _norm(hidden @ second.weight.T + second.bias + y, block.norm)


@torch.no_grad()
def test_acting_beyond_its_window_is_the_parallel_pass_over_the_window() -> None:
    model = make_model("ActingWindow=4", "ImagineWindow=4")
    latent, action = make_inputs(2, 11)
    state = model.initial_state(2, latent.device)
    for t in range(11):
        stepped = model.step(latent[:, t], action[:, t], state)
        window = slice(max(0, t - 3), t + 1)
        begins = torch.zeros(2, window.stop - window.start, dtype=torch.bool)
        expected, _ = model(latent[:, window], action[:, window], begins)
        torch.testing.assert_close(stepped, expected[:, -1], **EXACT)


@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_imagination_starts_from_the_last_steps_of_its_window(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start further into its episode sees what an agent sees that met the window alone.

    So it does where a step is compiled, and reads the whole cache under a mask.
    """
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    model = make_model("ImagineWindow=3")
    latent, action = make_inputs(2, 8)
    is_first = Data(2, 8, ((0, 5),)).batch(load_small()).is_first
    _, history = model(latent, action, is_first, return_history=True)
    steps = slice(2, 8)
    zero = torch.zeros(12, dtype=torch.bool)
    state = history.start(steps, zero, 6)
    more_latent, more_action = make_inputs(12, 6)
    found = [model.step(more_latent[:, h], more_action[:, h], state) for h in range(6)]
    for number in range(12):
        row, last = divmod(number, 6)
        last += 2
        first = max(last - 2, 5 if row == 0 and last >= 5 else 0)
        window = slice(first, last + 1)
        z = torch.cat([latent[row, window], more_latent[number]]).unsqueeze(0)
        a = torch.cat([action[row, window], more_action[number]]).unsqueeze(0)
        expected, _ = model(z, a, torch.zeros(z.shape[:2], dtype=torch.bool))
        torch.testing.assert_close(torch.stack(found)[:, number], expected[0, -6:], **EXACT)


def test_dropout_reaches_weights_attention_output_and_feed_forward() -> None:
    model = make_model("Dropout=0.25", "Blocks=1")
    latent, action = make_inputs(2, 6)
    no_reset = torch.zeros(2, 6, dtype=torch.bool)
    block = model.blocks[0]
    rates = [block.rate, block.output_dropout.p, block.feed_forward[-1].p]
    assert rates == [0.25] * 3
    whole = model(latent, action, no_reset)[0]
    assert torch.equal(model(latent, action, no_reset)[0], whole)
    model.train()
    for dropout in (block.output_dropout, block.feed_forward[-1]):
        dropout.p = 0.0
    assert not torch.equal(model(latent, action, no_reset)[0], whole)  # the weights alone
    block.rate = 0.0
    torch.testing.assert_close(model(latent, action, no_reset)[0], whole, **EXACT)


def test_beyond_the_table_of_positions_there_is_one_clear_line() -> None:
    model = make_model("Positions=40", "ImagineWindow=8")
    latent, action = make_inputs(1, 41)
    no_reset = torch.zeros(1, 41, dtype=torch.bool)
    with pytest.raises(UserError, match=r"41 steps .*Positions = 40"):
        model(latent, action, no_reset)
    _, history = model(latent[:, :40], action[:, :40], no_reset[:, :40], return_history=True)
    history.start(slice(0, 40), torch.zeros(40, dtype=torch.bool), 32)
    with pytest.raises(UserError, match="ImagineWindow = 8 and 33 imagined steps"):
        history.start(slice(0, 40), torch.zeros(40, dtype=torch.bool), 33)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("Models.WorldModel.Heads=5", "Heads = 5 is impossible: it must divide Models.Hidden"),
        ("Models.WorldModel.Positions=15", "Positions = 15 .* at least .*BatchLength = 16"),
        ("Models.WorldModel.ActingWindow=65", "ActingWindow = 65 .* at most .*Positions = 64"),
        ("Models.WorldModel.ImagineWindow=55", "ImagineWindow = 55 .*ImagineHorizon = 10"),
    ],
)
def test_impossible_sizes_are_refused_where_they_are_read(override: str, message: str) -> None:
    load_small(override)  # linear attention does not read the key
    with pytest.raises(UserError, match=message):
        load_small(ATTENTION, override)


@torch.no_grad()
def test_imagination_in_bfloat16_stays_close() -> None:
    """Under autocast the cache is as exact as the keys that are put into it."""
    agent = make_agent(load_small(ATTENTION))
    model = agent.world_model.sequence.eval()
    latent, action = (x.float() for x in make_inputs(2, 6))
    no_reset = torch.zeros(2, 6, dtype=torch.bool)
    outputs = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            _, history = model(latent, action, no_reset, return_history=True)
            state = history.start(slice(2, 6), torch.zeros(8, dtype=torch.bool), 3)
            step = latent[:, :4].flatten(0, 1), action[:, :4].flatten(0, 1)
            outputs.append(torch.stack([model.step(*step, state).float() for _ in range(3)]))
    assert not torch.equal(*outputs)
    torch.testing.assert_close(*outputs, rtol=0.1, atol=0.1)
