"""What is captured and when, without CUDA: only the capture is replaced."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
import torch

from benchmarks.train_step import as_graphs, check_captured
from pwm_core.errors import UserError
from pwm_core.training.agent import compile_mode
from pwm_core.training.cuda_graph import EAGER_CALLS, CapturedUpdate, CaptureError, CudaGraph
from pwm_core.training.graph_check import difference
from pwm_core.training.optimizer import Optimizer
from tests.helpers import load_small, make_agent
from tests.training.test_training_step import (
    LENGTH,
    ROWS,
    SIZES,
    STABLE,
    Course,
    assert_same_course,
    make_replay,
)

STEPS = EAGER_CALLS + 3


class Again:
    """Replays a function by calling it again, as a faithful graph would."""

    def run(self, function: Callable[[], Any]) -> Any:
        return function()

    def capture(self, function: Callable[[], Any]) -> Callable[[], Any]:
        return function


class Refused(Again):
    """A device on which nothing can be captured."""

    def capture(self, function: Callable[[], Any]) -> Callable[[], Any]:
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nand much more")
        finally:  # as torch does when it ends the capture
            raise RuntimeError("operation failed due to a previous error during capture")


class Counted(Again):
    """Notes what is captured."""

    captured: ClassVar[list[Callable[[], Any]]] = []

    def capture(self, function: Callable[[], Any]) -> Callable[[], Any]:
        self.captured.append(function)
        return function


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], Any]]:
    monkeypatch.setattr(Counted, "captured", found := [])
    return found


class Frozen(Again):
    """A graph that misses what changes between two calls: it returns the first result for ever."""

    def capture(self, function: Callable[[], Any]) -> Callable[[], Any]:
        kept = function()
        return lambda: kept


def train(capture: type | None, *, on_device: bool = True, checked: bool = True) -> Course:
    """A few steps on a CPU; eagerly without a ``capture``."""
    agent = make_agent(load_small(*SIZES, *STABLE))
    replay = make_replay(agent.device, discrete=True)
    torch.manual_seed(3)

    def sample() -> Any:
        return (replay.sample(ROWS, LENGTH),)

    def eagerly(**due: bool) -> Any:
        return agent.update(*sample(), **due)

    step: Callable[..., Any] = eagerly
    if capture is not None:
        modules, optimizers = [agent.world_model, agent.actor_critic], agent.optimizers
        check = partial(difference, modules, list(optimizers.values())) if checked else None
        step = CapturedUpdate(
            agent.update, sample, on_device=on_device, check=check, capture=capture
        )
    course = []
    for number in range(STEPS):
        metrics = step(world_model=True, actor_critic=number != 1)
        course.append({name: float(value) for name, value in metrics.items()})
    return course, {**agent.world_model.state_dict(), **agent.actor_critic.state_dict()}


@pytest.mark.parametrize("on_device", [True, False])
def test_the_check_takes_its_steps_back(
    on_device: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with it is the run without it bit for bit, with the same random numbers."""
    assert_same_course(train(None), train(Again, on_device=on_device), 0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("capture", "says"),
    [
        (Refused, "cannot be used: operation not permitted when stream is capturing\n"),
        (Frozen, "cannot be used: it differs from the eager one: "),
    ],
)
def test_a_graph_that_cannot_be_used_leaves_an_eager_run(
    capture: type, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_same_course(train(None), train(capture), 0)
    out = capsys.readouterr().out
    assert says in out
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("off", "says"), [(1e-5, None), (0.1, "the change of Linear is 0.101 instead of 0.001")]
)
def test_every_replay_is_compared_with_an_eager_step_from_the_same_state(
    off: float, says: str | None
) -> None:
    """A replay that ends elsewhere by rounding is not held against the steps that follow, where the
    metric would differ by a hundredth. A wrong update is found, though it follows the metrics."""
    module = torch.nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(module, lr=0.1, eps=1e-8, weight_decay=0.0, clip=1.0)
    torch.nn.init.zeros_(module.weight)

    def step(change: float) -> Any:
        metrics = {"value": 1e4 * module.weight.detach().sum()}
        module.weight.data += change
        return metrics

    found = difference([module], [optimizer], lambda: step(1e-3), lambda: step(1e-3 + off))
    assert found == says
    assert module.weight.item() == 0


def test_without_the_check_a_refused_capture_is_still_no_end() -> None:
    """The step at which it is found out is not lost."""
    assert_same_course(train(None), train(Refused, checked=False), 0)


def test_without_the_check_a_frozen_graph_goes_unseen() -> None:
    """The check is what finds it: the weights of such a run are not the eager run's."""
    (_, eager), (_, frozen) = train(None), train(Frozen, checked=False)
    assert any(not torch.equal(eager[name], frozen[name]) for name in eager)


def test_a_failed_capture_lets_all_graphs_be_captured_anew(
    captured: list[Callable[[], Any]],
) -> None:
    """Their random generator is no longer the one that is in use."""
    good, bad = CudaGraph(lambda: 1, Counted), CudaGraph(lambda: 2, Refused)
    for _ in range(EAGER_CALLS + 2):
        assert good() == 1
    assert len(captured) == 1
    for _ in range(EAGER_CALLS):
        assert bad() == 2
    with pytest.raises(CaptureError, match="operation not permitted when stream is capturing"):
        bad()
    assert [good(), good()] == [1, 1]
    assert len(captured) == 2


def test_forgotten_graphs_are_captured_again(captured: list[Callable[[], Any]]) -> None:
    """Loading an optimiser's state replaces the tensors that a graph reads."""
    calls = []

    def update(*_batches: Any, **due: bool) -> Any:
        calls.append(due)
        return {}

    step = CapturedUpdate(update, lambda: (), on_device=True, capture=Counted)
    dues = [{"world_model": True, "actor_critic": both} for both in (True, False)]
    for number in (1, 2):
        for due in dues:
            for _ in range(EAGER_CALLS + 2):
                step(**due)
            assert calls[-1] == due
        assert len(captured) == 2 * number
        step.reset()
    assert len(calls) == 2 * 2 * (EAGER_CALLS + 2)
    assert not step.eager


def test_auto_is_the_graph_on_cuda_alone() -> None:
    modes = {kind: compile_mode("auto", torch.device(kind)) for kind in ("cpu", "cuda")}
    assert modes == {"cpu": "off", "cuda": "graph"}
    assert compile_mode("compile", torch.device("cuda")) == "compile"


def test_the_benchmark_times_every_part_as_a_graph() -> None:
    calls = {"replay": 0, "imagination": 0}

    def count(name: str) -> None:
        calls[name] += 1

    parts = {name: partial(count, name) for name in calls}
    found = as_graphs(parts, on_device=False, capture=Again)
    assert [isinstance(call, CudaGraph) for call in found.values()] == [False, True]
    for _ in range(EAGER_CALLS + 2):
        found["imagination"]()
    assert calls == {"replay": 0, "imagination": EAGER_CALLS + 2}


def test_the_benchmark_times_no_eager_step_as_a_graph() -> None:
    step = CapturedUpdate(lambda **_: {}, lambda: (), on_device=True, capture=Refused)
    due = {"world_model": True, "actor_critic": True}
    for _ in range(EAGER_CALLS):
        step(**due)
    check_captured(step)
    step(**due)
    with pytest.raises(UserError, match="runs eagerly"):
        check_captured(step)
