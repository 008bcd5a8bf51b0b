"""What every sequence model must do, whatever it computes."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from pwm_core.config import Config, WorldModelConfig
from pwm_core.models.imagination import imagine
from pwm_core.models.sequence_models import SEQUENCE_MODELS, make_sequence_model
from pwm_core.models.sequence_models.base import SequenceModel
from pwm_core.models.types import Batch
from tests.helpers import ACTIONS, CLASSES, STOCH, WIDTH, Data, disturb, load_small, make_agent

ROWS, STEPS, HORIZON = 3, 9, 5
FIRSTS = ((0, 0), (0, 4), (1, 3), (1, 4), (2, 6))
EXACT = {"rtol": 1e-9, "atol": 1e-10}
"""In float64."""
WINDOWS = ("Models.WorldModel.ActingWindow=64", "Models.WorldModel.ImagineWindow=40")
"""With windows longer than any episode here, attention sees all of an episode, as the others do."""
VARIANTS = [(f"SequenceModel={name}",) for name in SEQUENCE_MODELS]
VARIANTS += [("SequenceModel=attention", "Heads=2", "FeedForwardAct=GELU", "Blocks=3")]
VARIANTS += [
    ("SequenceModel=ssm", f"SSMScan={scan}") for scan in ("sequential", "kogge_stone", "fft")
]
VARIANTS += [("SequenceModel=gru", "OutputTanh=true")]
VARIANTS += [(switch,) for switch in ("TokenMixing=false", "Decay=learned", "Decay=none")]
MODELS = pytest.mark.parametrize("variant", VARIANTS, ids=",".join)
Inputs = tuple[Tensor, Tensor, Tensor]
"""Latents, actions and is_first."""


def small(variant: tuple[str, ...], *overrides: str) -> Config:
    changes = [f"Models.WorldModel.{change}" for change in variant]
    return load_small(*WINDOWS, *changes, *overrides)


def make_model(config: Config) -> SequenceModel:
    """A model in float64 and eval mode, with noise on all its parameters."""
    torch.manual_seed(0)
    model = make_sequence_model(config.Models, ACTIONS).eval()
    disturb(model)
    return model.double()


def make_inputs(firsts: tuple[tuple[int, int], ...] = FIRSTS, rows: int = ROWS) -> Inputs:
    generator = torch.Generator().manual_seed(4)
    is_first = Data(rows, STEPS, firsts).batch(load_small()).is_first
    latent = torch.randn(rows, STEPS, STOCH * CLASSES, generator=generator, dtype=torch.float64)
    action = torch.randn(rows, STEPS, ACTIONS, generator=generator, dtype=torch.float64)
    return latent, action, is_first


def recurrent(model: SequenceModel, inputs: Inputs) -> Iterator[tuple[Tensor, Any]]:
    """The outputs of recurrent steps, and the state after each."""
    latent, action, is_first = inputs
    state = model.initial_state(len(latent), latent.device)
    for t in range(latent.shape[1]):
        state = state.reset(is_first[:, t])
        yield model.step(latent[:, t], action[:, t], state), state


def tensors(state: Any) -> list[Tensor]:
    """All tensors of a state, in order."""
    values = state.state_dict().values()
    return [x for value in values for x in (value if isinstance(value, list) else [value])]


def test_the_config_names_every_model() -> None:
    names = get_args(WorldModelConfig.model_fields["SequenceModel"].annotation)
    assert set(names) == set(SEQUENCE_MODELS)


@MODELS
@pytest.mark.parametrize("firsts", [FIRSTS, ()], ids=["resets", "no resets"])
@torch.no_grad()
def test_the_parallel_pass_is_the_recurrent_steps(variant: tuple[str, ...], firsts: Any) -> None:
    model, inputs = make_model(small(variant)), make_inputs(firsts)
    deter, history = model(*inputs)
    assert deter.shape == (ROWS, STEPS, WIDTH)
    assert history is None
    assert deter.std() > 0.1
    with_history, history = model(*inputs, return_history=True)
    assert history is not None
    torch.testing.assert_close(with_history, deter, **EXACT)
    for t, (stepped, _state) in enumerate(recurrent(model, inputs)):
        torch.testing.assert_close(stepped, deter[:, t], **EXACT)


@MODELS
@torch.no_grad()
def test_a_latent_may_be_class_indices(variant: tuple[str, ...]) -> None:
    model, (_, action, is_first) = make_model(small(variant)), make_inputs()
    index = torch.randint(CLASSES, (ROWS, STEPS, STOCH))
    vector = torch.nn.functional.one_hot(index, CLASSES).flatten(2).double()
    deter, _ = model(index, action, is_first)
    torch.testing.assert_close(model(vector, action, is_first)[0], deter, **EXACT)


@MODELS
@torch.no_grad()
def test_a_step_sees_its_own_past_back_to_the_reset_and_nothing_else(
    variant: tuple[str, ...],
) -> None:
    """Latent and action of one step of one row change; the outputs that change are listed."""
    model, (latent, action, is_first) = make_model(small(variant)), make_inputs()
    before, _ = model(latent, action, is_first)
    for row, step, reached in (
        (0, 3, [3]),
        (0, 4, [4, 5, 6, 7, 8]),
        (1, 3, [3]),
        (2, 1, range(1, 6)),
    ):
        other_latent, other_action = latent.clone(), action.clone()
        other_latent[row, step], other_action[row, step] = latent[0, 0] + 1, action[0, 0] + 1
        after, _ = model(other_latent, other_action, is_first)
        changed = ((before - after).abs() > 1e-7).any(-1)
        assert changed.nonzero().tolist() == [[row, t] for t in reached]
        unchanged = (before - after).abs().amax(-1)[~changed]
        assert (unchanged < 1e-12).all()


@MODELS
@torch.no_grad()
def test_an_episode_counts_from_its_reset(variant: tuple[str, ...]) -> None:
    """After a reset a model computes what it computes at the start of a sequence."""
    model, (latent, action, is_first) = make_model(small(variant)), make_inputs(((0, 0), (0, 4)))
    deter, _ = model(latent, action, is_first)
    alone, _ = model(latent[:1, 4:], action[:1, 4:], torch.zeros(1, 5, dtype=torch.bool))
    torch.testing.assert_close(deter[:1, 4:], alone, **EXACT)


@MODELS
@torch.no_grad()
def test_the_rows_of_a_batch_are_independent(variant: tuple[str, ...]) -> None:
    model, inputs = make_model(small(variant)), make_inputs()
    deter, _ = model(*inputs)
    for row in range(ROWS):
        alone = tuple(x[row : row + 1] for x in inputs)
        torch.testing.assert_close(model(*alone)[0], deter[row : row + 1], **EXACT)
        for t, (stepped, _state) in enumerate(recurrent(model, alone)):
            torch.testing.assert_close(stepped, deter[row : row + 1, t], **EXACT)


@MODELS
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gradients_reach_every_parameter_and_input(
    variant: tuple[str, ...], dropout: float
) -> None:
    config = small(variant, f"Models.WorldModel.Dropout={dropout}")
    torch.manual_seed(0)
    model = make_sequence_model(config.Models, ACTIONS).double().train()
    latent, action, is_first = make_inputs()
    latent.requires_grad_()
    action.requires_grad_()
    deter, _ = model(latent, action, is_first)
    (deter * torch.randn_like(deter)).sum().backward()
    for name, value in [*model.named_parameters(), ("latent", latent), ("action", action)]:
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
        assert value.grad.abs().sum() > 0, name


@MODELS
@torch.no_grad()
def test_the_gradient_is_the_slope(variant: tuple[str, ...]) -> None:
    """The derivative in a random direction of all inputs agrees with finite differences."""
    model, (latent, action, is_first) = make_model(small(variant)), make_inputs()
    weight, direction = torch.randn(ROWS, STEPS, WIDTH).double(), torch.randn_like(latent)

    def value(x: Tensor) -> Tensor:
        return (model(x, action, is_first)[0] * weight).sum()

    with torch.enable_grad():
        moved = latent.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(moved), moved)
    step = 1e-5
    slope = (value(latent + step * direction) - value(latent - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-6)


@MODELS
@torch.no_grad()
def test_states_reset_copy_and_save(variant: tuple[str, ...]) -> None:
    model, inputs = make_model(small(variant)), make_inputs()
    states = [state.clone() for _, state in recurrent(model, inputs)]
    last = states[-1]
    zeros = model.initial_state(ROWS, torch.device("cpu"))
    assert all((x == 0).all() for x in tensors(zeros))
    assert all((x != 0).any() for x in tensors(last))

    clone = last.clone()
    reset = last.reset(torch.tensor([False, True, False]))
    for x, y, z in zip(tensors(last), tensors(reset), tensors(clone), strict=True):
        assert torch.equal(x, z)
        assert x.data_ptr() != z.data_ptr()
        assert torch.equal(x[0], y[0])
        assert (y[1] == 0).all()
        assert x.data_ptr() != y.data_ptr()
        assert torch.equal(x[2], y[2])

    places = [x.data_ptr() for x in tensors(zeros)]
    zeros.copy_(last)
    file = io.BytesIO()
    torch.save(last.state_dict(), file)
    file.seek(0)
    loaded = model.initial_state(ROWS, torch.device("cpu"))
    kept = [x.data_ptr() for x in tensors(loaded)]
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert [x.data_ptr() for x in tensors(zeros)] == places
    assert [x.data_ptr() for x in tensors(loaded)] == kept
    for copied in (zeros, loaded):
        assert all(torch.equal(x, y) for x, y in zip(tensors(copied), tensors(last), strict=True))
    latent, action, _ = inputs
    expected = model.step(latent[:, 0], action[:, 0], last)
    for copied in (clone, zeros, loaded):
        assert torch.equal(model.step(latent[:, 0], action[:, 0], copied), expected)


@MODELS
@pytest.mark.parametrize("steps", [slice(0, 9), slice(5, 9), slice(8, 9), slice(2, 6)], ids=str)
@torch.no_grad()
def test_imagining_on_is_the_recurrent_steps(variant: tuple[str, ...], steps: slice) -> None:
    """From every start, also those with zero states, and also after a reset."""
    model, inputs = make_model(small(variant)), make_inputs()
    _, history = model(*inputs, return_history=True)
    states = [state.clone() for _, state in recurrent(model, inputs)][steps]
    zero = torch.rand(ROWS * len(states), generator=torch.Generator().manual_seed(1)) < 0.3
    imagined = history.start(steps, zero, HORIZON)
    states = [state.reset(zero.view(ROWS, -1)[:, number]) for number, state in enumerate(states)]
    for _ in range(HORIZON):
        latent = torch.randn(ROWS, len(states), STOCH * CLASSES).double()
        action = torch.randn(ROWS, len(states), ACTIONS).double()
        found = model.step(latent.flatten(0, 1), action.flatten(0, 1), imagined)
        for number, state in enumerate(states):
            expected = model.step(latent[:, number], action[:, number], state)
            torch.testing.assert_close(found.view(ROWS, -1, WIDTH)[:, number], expected, **EXACT)


@MODELS
@torch.no_grad()
def test_the_whole_agent_imagines_from_the_replayed_states(variant: tuple[str, ...]) -> None:
    """An imagined rollout repeats, and it is what recurrent steps give for its actions."""
    agent = make_agent(small(variant))
    model = agent.world_model.eval()
    batch = Data(ROWS, STEPS, FIRSTS).batch(agent.config)
    context = model.context(batch, STEPS)
    trajectory = imagine(model, agent.actor_critic, context, HORIZON, 0.99)
    count = ROWS * (STEPS - 1)
    assert trajectory.deter.shape == (count, HORIZON + 1, WIDTH)
    state = context.history.start(context.steps, context.begins, HORIZON)
    for h in range(HORIZON):
        action = agent.actor_critic.policy.encode(trajectory.action[:, h])
        deter = model.sequence.step(trajectory.latent[:, h], action, state)
        torch.testing.assert_close(trajectory.deter[:, h + 1], deter)


@MODELS
@torch.no_grad()
def test_bfloat16_stays_close(variant: tuple[str, ...]) -> None:
    """Under autocast the parallel pass and imagination compute nearly the numbers of float32."""
    model = make_model(small(variant)).float()
    latent, action, is_first = (x.float() for x in make_inputs(rows=20))
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            deter, history = model(latent, action, is_first.bool(), return_history=True)
            state = history.start(slice(3, 7), torch.zeros(80, dtype=torch.bool), 3)
            step = latent[:, :4].flatten(0, 1), action[:, :4].flatten(0, 1)
            outputs = [model.step(*step, state).float() for _ in range(3)]
            results.append(torch.cat([deter.float().flatten(), torch.stack(outputs).flatten()]))
    assert not torch.equal(*results)
    error = (results[0] - results[1]).square().mean().sqrt()
    assert error < 0.02 * results[0].std()


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if "SSMScan=fft" not in v], ids=",".join
)  # an FFT looks at the resets
def test_a_training_step_never_asks_the_device(
    variant: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, gradients, imagination and acting run on the meta device, which has no values."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    agent = make_agent(small(variant), device="meta")
    batch = Batch(*(x.to("meta") for x in Data(ROWS, STEPS, FIRSTS).batch(agent.config)))
    loss, _ = agent.world_model.train().loss(batch)
    loss.backward()
    with torch.no_grad():
        context = agent.world_model.eval().context(batch, STEPS)
        trajectory = imagine(agent.world_model, agent.actor_critic, context, HORIZON, 0.99)
        state = agent.world_model.sequence.initial_state(ROWS, torch.device("meta"))
        latent = torch.zeros(ROWS, STOCH, dtype=torch.int64, device="meta")
        action = torch.zeros(ROWS, ACTIONS, device="meta")
        agent.world_model.sequence.step(latent, action, state.reset(batch.is_first[:, 0]))
    assert trajectory.deter.device.type == "meta"


@MODELS
def test_training_and_acting_resume_exactly(variant: tuple[str, ...]) -> None:
    """A fresh agent that loads the state after an update goes on with the same numbers."""
    config = small(variant)
    batches = [Data(ROWS, STEPS, FIRSTS, seed=seed).batch(config) for seed in (0, 1)]
    agent, other = make_agent(config), make_agent(config)
    agent.update(batches[0])
    state = agent.initial_state(ROWS)
    obs, first = batches[0].obs[:, 0].numpy(), batches[0].is_first[:, 0].numpy()
    agent.act(obs, first, state)
    stored = copy.deepcopy((agent.state_dict(), state.state_dict()))

    def go_on(agent: Any, state: Any) -> tuple[dict[str, float], list[float]]:
        torch.manual_seed(7)
        metrics = agent.update(batches[1])
        actions = [
            agent.act(batches[1].obs[:, t].numpy(), batches[1].is_first[:, t].numpy(), state)
            for t in range(STEPS)
        ]
        return {k: float(v) for k, v in metrics.items()}, [a.tolist() for a in actions]

    expected = go_on(agent, state)
    other.load_state_dict(stored[0])
    loaded = other.initial_state(ROWS)
    loaded.load_state_dict(stored[1])
    assert go_on(other, loaded) == expected
    after = {**agent.weights()["world_model"], **agent.weights()["actor_critic"]}
    for name, value in {
        **other.weights()["world_model"],
        **other.weights()["actor_critic"],
    }.items():
        assert torch.equal(value, after[name]), name
    pairs = zip(tensors(state.sequence), tensors(loaded.sequence), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)
    assert expected[0]["WorldModel/total_loss"] > 0
