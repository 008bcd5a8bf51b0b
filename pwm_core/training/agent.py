"""The agent: a world model and an actor-critic, one training step of both, and acting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pwm_core.config import Config
from pwm_core.errors import UserError
from pwm_core.models.actor_critic import CRITICS, ActorCritic
from pwm_core.models.distributions import sample_index
from pwm_core.models.imagination import evaluate, imagine, imagined_step
from pwm_core.models.types import Batch, Context, Metrics, Trajectory, concatenate
from pwm_core.models.world_model import WorldModel
from pwm_core.runtime import has_bfloat16, to_device
from pwm_core.training.acting import ActingState
from pwm_core.training.cuda_graph import CapturedActing, CapturedUpdate
from pwm_core.training.graph_check import difference
from pwm_core.training.half_weights import HalfWeights
from pwm_core.training.optimizer import Optimizer
from pwm_core.training.replay_buffer import ReplayBuffer


def compile_mode(mode: str, device: torch.device) -> str:
    """``BasicSettings.Compile`` on ``device``, where ``auto`` is a graph on CUDA, else ``off``."""
    if mode == "auto":
        return "graph" if device.type == "cuda" else "off"
    return mode


def check_compiler(mode: str, device: torch.device) -> None:
    """Check that ``BasicSettings.Compile`` can be ``mode`` on ``device``.

    Raises:
        UserError: a CPU's kernels must be compiled, and there is no C++ compiler.
    """
    if device.type != "cpu" or not mode.startswith("compile"):
        return
    from torch._inductor.cpp_builder import get_cpp_compiler  # seconds that only this mode takes

    try:
        get_cpp_compiler()
    except RuntimeError:
        raise UserError(
            f"BasicSettings.Compile: {mode} needs a C++ compiler (apt-get install g++); or write "
            "off"
        ) from None


def _compiler(device: torch.device) -> Callable[..., Any]:
    """torch.compile for fixed shapes.

    On a CPU the kernels are called from C++. They are the same, so the numbers are too, but a step
    of hundreds of short kernels does not wait for Python between them. The code that calls the
    kernels is built apart from them and with less optimisation, which saves a fifth of the time
    that compiling takes.
    """
    options = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True}
    return partial(torch.compile, dynamic=False, options=options if device.type == "cpu" else None)


def _as_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


class Agent:
    """World model and actor-critic with their optimisers, on one device.

    Attributes:
        optimizers: by the names ``WorldModel`` and ``ActorCritic``.
        uses_cuda_graph: whether updates and acting run as CUDA graphs.
        compiles: whether losses and imagination are compiled, at the first update of each.
    """

    def __init__(
        self,
        config: Config,
        world_model: WorldModel,
        actor_critic: ActorCritic,
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        self.world_model = world_model.to(device)
        self.actor_critic = actor_critic.to(device)
        self.optimizers = {
            name: Optimizer(
                module,
                lr=settings.LR,
                eps=settings.Eps,
                weight_decay=settings.WeightDecay,
                clip=settings.GradClip,
            )
            for name, module, settings in (
                ("WorldModel", self.world_model, config.Models.WorldModel),
                ("ActorCritic", self.actor_critic, config.Models.Agent),
            )
        }
        mode = compile_mode(config.BasicSettings.Compile, device)
        self.uses_cuda_graph = "graph" in mode and device.type == "cuda"
        self._captured: list[CapturedUpdate] = []
        self.compiles = mode.startswith("compile")
        compiled = _compiler(device) if self.compiles else _as_is
        self._compiled = compiled  # for subclasses
        self._world_model_loss = compiled(self.world_model.loss)
        self._context = compiled(self.world_model.context)
        self._imagine = partial(imagine, step=compiled(imagined_step), evaluate=compiled(evaluate))
        self._actor_critic_loss = compiled(self.actor_critic.loss)
        self._amp = config.BasicSettings.UseAmp and has_bfloat16(device)
        self._half = self._half_weights() if self._amp and device.type == "cuda" else None

    def _half_weights(self) -> HalfWeights:
        """Copies of all weights that imagination reads."""
        parts = dict(self.world_model.named_children()) | {"actor": self.actor_critic.actor}
        return HalfWeights([part for name, part in parts.items() if name != "decoder"])

    def autocast(self) -> torch.autocast:
        """Compute in bfloat16 if ``UseAmp`` is set and the device supports it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._amp)

    # ------------------------------------------------------------------------- one training step

    def draw(
        self, replay: ReplayBuffer, demonstration: ReplayBuffer | None = None
    ) -> tuple[Batch, ...]:
        """The replayed sequences of one training step, as :meth:`update` takes them.

        Args:
            replay: what the agent has done.
            demonstration: a recorded trajectory, of which some sequences are added.
        """
        settings = self.config.JointTrainAgent
        batch = replay.sample(settings.BatchSize, settings.BatchLength)
        if demonstration is None:
            return (batch,)
        added = demonstration.sample(settings.DemonstrationBatchSize, settings.BatchLength)
        return (concatenate(batch, added),)

    def update(
        self,
        batch: Batch,
        contexts: Batch | None = None,
        *,
        world_model: bool = True,
        actor_critic: bool = True,
    ) -> Metrics:
        """One training step: update the world model on ``batch``, then the actor-critic inside it.

        Args:
            batch: replayed sequences.
            contexts: the sequences that imagination starts from, if it is not ``batch``.
            world_model, actor_critic: which of the two updates to make.

        Returns:
            metrics, scalars that stay on the device.
        """
        metrics: Metrics = {}
        if world_model:
            metrics |= self.train_world_model(batch)
        if actor_critic:
            metrics |= self.train_actor_critic(self.imagine(batch, contexts))
        return metrics

    def train_world_model(self, batch: Batch) -> Metrics:
        """One update of the world model on replayed sequences."""
        self.world_model.train()
        with self.optimizers["WorldModel"].update() as apply:
            with self.autocast():
                loss, metrics = self._world_model_loss(batch)
            metrics["grad_norm"] = apply(loss)
        return {f"WorldModel/{name}": value for name, value in metrics.items()}

    def imagine(self, batch: Batch, contexts: Batch | None = None) -> Trajectory:
        """Rollouts of the policy inside the world model that start from the states of ``batch``, or
        of ``contexts`` if they are given."""
        settings = self.config.JointTrainAgent
        self.world_model.eval()
        half = self._half.used() if self._half else contextlib.nullcontext()
        with self.autocast(), half:
            return self._imagine(
                self.world_model,
                self.actor_critic,
                self._starts(batch if contexts is None else contexts),
                settings.ImagineHorizon,
                self.config.discount,
            )

    def _starts(self, batch: Batch) -> Context:
        """The states of ``batch`` that imagination starts from."""
        settings = self.config.JointTrainAgent
        rows = Batch(*(field[: settings.ImagineBatchSize] for field in batch))
        return self._context(rows, settings.ImagineContext)

    def train_actor_critic(self, trajectory: Trajectory) -> Metrics:
        """``AgentUpdate`` updates on imagined rollouts; returns the metrics of the last one."""
        for update in range(self.config.JointTrainAgent.AgentUpdate):
            with self.optimizers["ActorCritic"].update() as apply:
                with self.autocast():
                    loss, metrics = self._actor_critic_loss(trajectory, again=update > 0)
                metrics["grad_norm"] = apply(loss)
            self.actor_critic.update_slow_critic()
        return {f"ActorCritic/{name}": value for name, value in metrics.items()}

    def training_step(
        self, replay: ReplayBuffer, demonstration: ReplayBuffer | None = None
    ) -> Callable[..., Metrics]:
        """A function that samples with :meth:`draw` and calls :meth:`update` with its own
        arguments.

        It runs eagerly or as a CUDA graph, depending on ``BasicSettings.Compile``.
        """

        def sample() -> tuple[Batch, ...]:
            return self.draw(replay, demonstration)

        if not self.uses_cuda_graph:
            return lambda **due: self.update(*sample(), **due)
        check = None
        if self.config.BasicSettings.GraphCheck:
            modules = [self.world_model, self.actor_critic]
            check = partial(difference, modules, list(self.optimizers.values()))
        places = {buffer.place.type for buffer in (replay, demonstration) if buffer is not None}
        captured = CapturedUpdate(self.update, sample, on_device=places == {"cuda"}, check=check)
        self._captured.append(captured)
        return captured

    def skipped(self) -> dict[str, float]:
        """The number of updates skipped so far because loss or gradient was not finite.

        It waits for the device.
        """
        return {
            f"{name}/skipped_updates": float(optimizer.skipped)
            for name, optimizer in self.optimizers.items()
        }

    # ------------------------------------------------------------------------------------ acting

    def initial_state(self, num_envs: int) -> ActingState:
        """The state before the first step of ``num_envs`` environments."""
        deter = torch.zeros(num_envs, self.world_model.width, device=self.device)
        return ActingState(deter, self.world_model.sequence.initial_state(num_envs, self.device))

    def act(
        self, obs: np.ndarray, is_first: np.ndarray, state: ActingState, *, greedy: bool = False
    ) -> np.ndarray:
        """Actions for real observations; ``state`` is updated in place.

        Args:
            obs: (N, *observation_shape).
            is_first: (N,) bool, whether ``obs`` begins an episode; the state is then zeros.
            greedy: take the policy's mode instead of a sample.

        Returns:
            (N,) int64 or (N, A) float32 within the action bounds.
        """
        self.world_model.eval()
        if not self.uses_cuda_graph:
            inputs = to_device(obs, self.device), to_device(is_first, self.device)
            return self._act(*inputs, state, greedy).cpu().numpy()
        if greedy not in state.captured:
            state.captured[greedy] = CapturedActing(
                lambda *inputs: self._act(*inputs, state, greedy), obs, is_first, self.device
            )
        return state.captured[greedy](obs, is_first)

    @torch.no_grad()
    def _act(self, obs: Tensor, is_first: Tensor, state: ActingState, greedy: bool) -> Tensor:
        """:meth:`act` with tensors on the device."""
        model = self.world_model
        with self.autocast():
            latent = sample_index(model.encode(model.codec.prepare(obs)))
            deter, sequence = state.reset(is_first)
            action = self._choose(deter, latent, is_first, greedy)
            deter = model.sequence.step(latent, model.policy.encode(action), sequence)
        state.copy_(deter.float(), sequence)
        return action

    def _choose(self, deter: Tensor, latent: Tensor, is_first: Tensor, greedy: bool) -> Tensor:
        """Actions (N,) or (N, A).

        Args:
            deter: (N, D) ``deter_{t-1}``, zeros where an episode begins.
            latent: (N, S) int64, the latent of the observation.
            is_first: (N,) bool, whether the observation begins an episode.
            greedy: take the policy's mode instead of a sample.
        """
        return self.actor_critic.act(deter, latent, greedy=greedy)

    # ------------------------------------------------------------------------------------ saving

    def weights(self) -> dict[str, Any]:
        """The state that evaluation needs: networks, BatchNorm statistics and return scale."""
        return {
            "world_model": self.world_model.state_dict(),
            "actor_critic": self.actor_critic.state_dict(),
        }

    def load_weights(self, weights: dict[str, Any]) -> None:
        """The inverse of :meth:`weights`. A published agent has no critics; they stay as they are.

        Raises:
            RuntimeError: weights are missing, not known, or of another shape.
        """
        self.world_model.load_state_dict(weights["world_model"])
        given = weights["actor_critic"]
        own = {k: v for k, v in self.actor_critic.state_dict().items() if k.startswith(CRITICS)}
        published = not any(key.startswith(CRITICS) for key in given)
        self.actor_critic.load_state_dict(own | given if published else given)

    def state_dict(self) -> dict[str, Any]:
        """The state that training needs in order to resume: weights and optimisers."""
        return self.weights() | {
            "updaters": {name: opt.state_dict() for name, opt in self.optimizers.items()}
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.load_weights(state)
        for captured in self._captured:  # the optimisers' tensors are replaced
            captured.reset()
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["updaters"][name])
