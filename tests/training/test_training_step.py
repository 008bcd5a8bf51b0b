"""A training step: it never waits for the device, and it runs compiled and as a CUDA graph."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
import torch._inductor.config
from torch import Tensor

from pwm_core.models.imagination import evaluate, imagine, imagined_step
from pwm_core.models.sequence_models import SEQUENCE_MODELS
from pwm_core.models.types import Metrics
from pwm_core.training import replay_buffer
from pwm_core.training.agent import Agent
from pwm_core.training.cuda_graph import EAGER_CALLS
from pwm_core.training.replay_buffer import Field, ReplayBuffer, TransitionSpec
from tests.helpers import (
    ACTIONS,
    Data,
    load_small,
    make_actor_critic,
    make_agent,
    make_world_model,
)

ROWS, LENGTH = 3, 7
SIZES = (
    f"JointTrainAgent={{BatchSize: {ROWS}, BatchLength: {LENGTH}, ImagineBatchSize: {ROWS}}}",
    f"JointTrainAgent={{ImagineContext: {LENGTH}, ImagineHorizon: 4}}",
)
STABLE = ("Models.WorldModel.Eps=1e-3", "Models.Agent.Eps=1e-3")
"""AdamW divides by the gradient's size. With the usual 1e-8, the rounding of a gradient near zero
would decide the direction of a whole step, and two runs would soon sample different latents."""
STEPS = 20


Course = tuple[list[dict[str, float]], dict[str, Tensor]]
"""The metrics of every step and the final weights."""


def make_replay(device: torch.device, *, discrete: bool) -> ReplayBuffer:
    """Two environments, 40 steps each, with episodes that begin in the middle."""
    action = Field((), torch.int64) if discrete else Field((ACTIONS,), torch.float32)
    spec = TransitionSpec(Field((16, 16, 3), torch.uint8), action)
    replay = ReplayBuffer(spec, 2, 80, device, storage="device")
    data = Data(2, 40, ((0, 0), (1, 0), (0, 17), (1, 29)), discrete=discrete)
    replay.write(0, data.batch(load_small())._asdict())
    return replay


def make_step(
    compile_mode: str, device: str, *, discrete: bool, amp: bool = False
) -> tuple[Agent, Callable[..., Metrics]]:
    settings = f"BasicSettings={{Compile: {compile_mode}, UseAmp: {str(amp).lower()}}}"
    config = load_small(*SIZES, *STABLE, settings)
    agent = make_agent(config, discrete=discrete, device=device)
    return agent, agent.training_step(make_replay(agent.device, discrete=discrete))


def train(
    compile_mode: str, device: str, *, discrete: bool, amp: bool = False, captured: bool = True
) -> Course:
    """The metrics of :data:`STEPS` steps from one seed, and the final weights.

    Every third step updates only the world model. ``captured`` says whether a CUDA graph is
    expected to be used to the end, where there is one.
    """
    agent, step = make_step(compile_mode, device, discrete=discrete, amp=amp)
    torch.manual_seed(3)
    history = []
    for number in range(STEPS):
        metrics = step(world_model=True, actor_critic=number % 3 != 2)
        history.append({name: float(value) for name, value in metrics.items()})
    if agent.uses_cuda_graph:
        assert step.eager == (not captured)
    weights = {**agent.world_model.state_dict(), **agent.actor_critic.state_dict()}
    return history, copy.deepcopy(weights)


def assert_same_course(one: Course, other: Course, rtol: float) -> None:
    """Metrics and weights agree to ``rtol``, relative and absolute."""
    for before, after in zip(one[0], other[0], strict=True):
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert after[name] == pytest.approx(value, rel=rtol, abs=rtol), name
    for name, value in one[1].items():
        torch.testing.assert_close(other[1][name], value, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("discrete", [True, False])
def test_a_step_never_asks_the_device(discrete: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling, losses, gradients and imagination run on the meta device.

    Its tensors have no values, so an ``.item()``, a branch on data or a CPU tensor would raise.
    """
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(replay_buffer, "free_bytes", lambda device: 10**12)
    config, meta = load_small(*SIZES), torch.device("meta")
    world_model = make_world_model(config, discrete=discrete).to(meta)
    actor_critic = make_actor_critic(config, discrete=discrete).to(meta)
    batch = make_replay(meta, discrete=discrete).sample(ROWS, LENGTH)
    assert batch.obs.device == meta
    loss, metrics = world_model.train().loss(batch)
    loss.backward()
    assert all(value.device == meta for value in metrics.values())
    with torch.no_grad():
        context = world_model.eval().context(batch, LENGTH)
        trajectory = imagine(world_model, actor_critic, context, 4, 0.99)
    loss, metrics = actor_critic.loss(trajectory)
    loss.backward()
    actor_critic.update_slow_critic()
    assert all(value.device == meta for value in metrics.values())
    with pytest.raises(RuntimeError, match="meta"):
        float(loss.detach())  # the check itself: reading does raise


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("model", sorted(SEQUENCE_MODELS))
def test_imagination_is_compiled_once_and_in_one_piece(model: str, discrete: bool) -> None:
    """However many steps it has. torch traces it, and the graphs run as they are."""
    config = load_small(*SIZES, f"Models.WorldModel.SequenceModel={model}")
    agent = make_agent(config, discrete=discrete)
    graphs = []

    def keep(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    def compiled(function: Callable[..., object]) -> Callable[..., object]:
        return torch.compile(function, backend=keep, dynamic=False, fullgraph=True)

    torch._dynamo.reset()
    batch = make_replay(agent.device, discrete=discrete).sample(ROWS, LENGTH)
    world_model = agent.world_model.eval()
    context = compiled(world_model.context)(batch, LENGTH)
    assert len(graphs) == 1
    for horizon in (2, 5):
        torch._dynamo.reset()
        graphs.clear()
        options = {"step": compiled(imagined_step), "evaluate": compiled(evaluate)}
        found = imagine(world_model, agent.actor_critic, context, horizon, 0.99, **options)
        assert found.reward.shape == (len(context.begins), horizon)
        assert len(graphs) == 2  # a step, and what is evaluated after all of them
    torch._dynamo.reset()


@pytest.mark.slow  # compiling takes a minute or two
def test_the_compiled_step_is_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both agree up to the order of floating-point sums.

    ``fallback_random`` makes the compiled step draw the random numbers of the eager one.
    """
    monkeypatch.setattr(torch._inductor.config, "fallback_random", True)
    eager = train("off", "cpu", discrete=False)
    assert_same_course(eager, train("compile", "cpu", discrete=False), rtol=2e-3)


def test_a_graph_on_a_cpu_is_the_eager_step() -> None:
    assert_same_course(train("off", "cpu", discrete=True), train("graph", "cpu", discrete=True), 0)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@needs_cuda
@pytest.mark.parametrize(
    ("mode", "other", "amp", "rtol"),
    [
        ("graph", "off", False, 2e-3),
        ("graph", "off", True, 2e-2),
        pytest.param("compile+graph", "off", False, 2e-3, marks=pytest.mark.slow),
        # compiled kernels round to bfloat16 less often than eager ones
        pytest.param("compile+graph", "compile", True, 2e-2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("discrete", [True, False])
def test_the_captured_step_is_the_same_step(
    mode: str, other: str, amp: bool, rtol: float, discrete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config, "fallback_random", True)
    options = {"discrete": discrete, "amp": amp}
    assert_same_course(train(other, "cuda", **options), train(mode, "cuda", **options), rtol)


@needs_cuda
def test_training_goes_on_where_a_step_asks_the_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``.item()`` ends a capture in the middle. The eager run that follows loses nothing."""
    update, before = Agent.update, torch.cuda.current_stream()
    eager = train("off", "cuda", discrete=True)

    def asking(self: Agent, *batches: object, **due: bool) -> Metrics:
        metrics = update(self, *batches, **due)
        next(iter(metrics.values())).item()
        return metrics

    monkeypatch.setattr(Agent, "update", asking)
    found = train("graph", "cuda", discrete=True, captured=False)
    assert_same_course(eager, found, rtol=2e-3)
    assert torch.cuda.current_stream() == before
    assert "updates run eagerly, because the CUDA graph cannot be used" in capsys.readouterr().out


@needs_cuda
def test_every_replay_of_the_graph_draws_new_numbers() -> None:
    agent, step = make_step("graph", "cuda", discrete=True)
    for group in (g for u in agent.optimizers.values() for g in u.adamw.param_groups):
        group["lr"] = 0.0
    losses = [
        float(step(world_model=True, actor_critic=True)["WorldModel/total_loss"])
        for _ in range(STEPS)
    ]
    assert len(set(losses[EAGER_CALLS:])) > 1
