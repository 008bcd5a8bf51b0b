"""Acting: state that stays in place, and the CUDA graph that needs it to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pwm_core.acting import ActingState
from pwm_core.agent import Agent
from pwm_core.runtime import to_device, use_tensor_float
from tests.helpers import Data, load_small, make_actor_critic, make_world_model

ENVS, STEPS = 3, 12
FIRSTS = ((0, 0), (1, 0), (2, 0), (1, 5), (2, 9))

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def make_agent(compile_mode: str, device: str) -> Agent:
    config = load_small(f"BasicSettings={{Compile: {compile_mode}, TF32: false}}")
    return Agent(config, make_world_model(config), make_actor_critic(config), torch.device(device))


def tensors(state: ActingState) -> list[torch.Tensor]:
    stored = state.state_dict()
    return [stored["deter"], *stored["previous"], *stored["memories"]]


def act(agent: Agent, *, greedy: bool) -> tuple[np.ndarray, list[torch.Tensor]]:
    """Actions (T, N) of :data:`STEPS` acting steps from one seed, and the state after them."""
    torch.manual_seed(5)
    batch = Data(ENVS, STEPS, FIRSTS).batch(agent.config)
    state, actions = agent.initial_state(ENVS), []
    for t in range(STEPS):
        obs, first = batch.obs[:, t].numpy(), batch.is_first[:, t].numpy()
        actions.append(agent.act(obs, first, state, greedy=greedy))
    return np.stack(actions), tensors(state)


def test_the_state_moves_on_in_the_same_tensors() -> None:
    agent = make_agent("off", "cpu")
    batch = Data(ENVS, STEPS, FIRSTS).batch(agent.config)
    state = agent.initial_state(ENVS)
    places, before = [x.data_ptr() for x in tensors(state)], [x.clone() for x in tensors(state)]
    agent.act(batch.obs[:, 0].numpy(), batch.is_first[:, 0].numpy(), state)
    assert [x.data_ptr() for x in tensors(state)] == places
    assert not any(torch.equal(x, y) for x, y in zip(tensors(state), before, strict=True))
    other = agent.initial_state(ENVS)
    other.load_state_dict(state.state_dict())
    assert other.deter.data_ptr() != places[0]
    for x, y in zip(tensors(state), tensors(other), strict=True):
        assert torch.equal(x, y)


def test_what_is_handed_over_may_be_overwritten() -> None:
    value = np.arange(6, dtype=np.float32)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    moved = to_device(value, device)
    assert moved.device.type == device.type
    assert moved.tolist() == value.tolist()
    if device.type == "cuda":
        value[:] = 0
        assert moved.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("enabled", [True, False])
def test_tensor_float_is_a_setting(enabled: bool) -> None:
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        use_tensor_float(enabled)
        assert [backend.allow_tf32 for backend in backends] == [enabled, enabled]
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


@needs_cuda
@pytest.mark.parametrize("greedy", [True, False])
def test_recorded_acting_is_eager_acting(greedy: bool) -> None:
    """Sampled actions too: a replayed graph draws what eager calls would have drawn."""
    eager = act(make_agent("off", "cuda"), greedy=greedy)
    recorded = act(make_agent("graph", "cuda"), greedy=greedy)
    np.testing.assert_array_equal(recorded[0], eager[0])
    for one, other in zip(recorded[1], eager[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
