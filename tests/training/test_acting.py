"""Acting: its state stays in the same memory, as its CUDA graph requires."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch

from pwm_core.runtime import to_device, use_tensor_float
from pwm_core.training.acting import ActingState
from pwm_core.training.agent import Agent
from pwm_core.training.cuda_graph import EAGER_CALLS, CaptureError, CudaGraph
from tests.helpers import Data, load_small, make_agent

ENVS, STEPS = 3, 12
FIRSTS = ((0, 0), (1, 0), (2, 0), (1, 5), (2, 9))

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def agent_for(compile_mode: str, device: str, *, discrete: bool = True, amp: bool = False) -> Agent:
    settings = f"{{Compile: {compile_mode}, TF32: false, UseAmp: {str(amp).lower()}}}"
    config = load_small(f"BasicSettings={settings}")
    return make_agent(config, discrete=discrete, device=device)


def tensors(state: ActingState) -> list[torch.Tensor]:
    stored = state.state_dict()
    return [stored["deter"], *stored["previous"], *stored["memories"]]


def fail_to_capture() -> None:
    """Capture a function that asks the device, which ends the capture in the middle."""
    graph = CudaGraph(lambda: torch.ones((), device="cuda").add(1).item())
    for _ in range(EAGER_CALLS):
        assert graph() == 2
    with pytest.raises(CaptureError):
        graph()


def act(
    agent: Agent, *, discrete: bool, greedy: bool, failing: bool = False
) -> tuple[np.ndarray, list[torch.Tensor]]:
    """The actions (T, N, ...) of :data:`STEPS` steps from one seed, and the state after them.

    Halfway, other weights are loaded and the state of two steps before is restored. With
    ``failing``, something else cannot be captured then. Acting stays captured where it is.
    """
    torch.manual_seed(5)
    batch = Data(ENVS, STEPS, FIRSTS, discrete=discrete).batch(agent.config)
    state, actions = agent.initial_state(ENVS), []
    for t in range(STEPS):
        if t == STEPS // 2 - 2:
            before = copy.deepcopy(state.state_dict())
        if t == STEPS // 2:
            weights = copy.deepcopy(agent.weights())
            weights["actor_critic"] = {k: -v for k, v in weights["actor_critic"].items()}
            agent.load_weights(weights)
            state.load_state_dict(before)
            if failing:
                fail_to_capture()
        obs, first = batch.obs[:, t].numpy(), batch.is_first[:, t].numpy()
        actions.append(agent.act(obs, first, state, greedy=greedy))
    assert [acting.eager for acting in state.captured.values()] == [False] * agent.uses_cuda_graph
    return np.stack(actions), tensors(state)


def test_the_state_moves_on_in_the_same_tensors() -> None:
    agent = agent_for("off", "cpu")
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


@needs_cuda
def test_an_array_on_its_way_to_the_device_may_be_overwritten() -> None:
    value = np.arange(6, dtype=np.float32)
    moved = to_device(value, torch.device("cuda"))
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
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("amp", [True, False])
def test_captured_acting_is_eager_acting(greedy: bool, discrete: bool, amp: bool) -> None:
    """A replayed graph also draws the random numbers that eager calls would draw."""
    kind = {"discrete": discrete, "amp": amp}
    eager = act(agent_for("off", "cuda", **kind), discrete=discrete, greedy=greedy)
    captured = act(agent_for("graph", "cuda", **kind), discrete=discrete, greedy=greedy)
    np.testing.assert_allclose(captured[0], eager[0], rtol=1e-4, atol=1e-5)
    for one, other in zip(captured[1], eager[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_cuda
def test_captured_acting_goes_on_after_another_capture_has_failed() -> None:
    """It draws from the generator that is then in use, as eager acting does."""
    kind = {"discrete": True, "greedy": False}
    eager = act(agent_for("off", "cuda"), **kind, failing=True)
    captured = act(agent_for("graph", "cuda"), **kind, failing=True)
    np.testing.assert_array_equal(captured[0], eager[0])


@pytest.mark.parametrize("discrete", [True, False])
def test_acting_never_asks_the_device(discrete: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, reading a value or mixing in a CPU tensor raises an error."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    meta, agent = torch.device("meta"), agent_for("off", "cpu", discrete=discrete)
    agent.world_model.to(meta).eval()
    agent.actor_critic.to(meta)
    agent.device = meta
    batch = Data(ENVS, STEPS, FIRSTS, discrete=discrete).batch(agent.config)
    state = agent.initial_state(ENVS)
    action = agent._act(batch.obs[:, 0].to(meta), batch.is_first[:, 0].to(meta), state, False)
    assert action.device == meta
    assert len(action) == ENVS
