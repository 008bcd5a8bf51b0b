"""The agent: models, optimisers, and the three things they do: train, imagine, act."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pwm_core.config import Config
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.distributions import sample_index
from pwm_core.models.imagination import Trajectory, imagine
from pwm_core.models.world_model import Batch, Metrics, WorldModel
from pwm_core.runtime import has_bfloat16, to_device
from pwm_core.training.acting import ActingState, RecordedActing
from pwm_core.training.optimizer import Updater


class Agent:
    """World model and actor-critic with their optimisers, on one device.

    Attributes:
        captures: whether updates and acting are to be replayed as CUDA graphs.
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
        model, agent = config.Models.WorldModel, config.Models.Agent
        self.updaters = {
            name: Updater(
                module,
                lr=settings.LR,
                eps=settings.Eps,
                weight_decay=settings.WeightDecay,
                clip=settings.GradClip,
            )
            for name, module, settings in (
                ("WorldModel", self.world_model, model),
                ("ActorCritic", self.actor_critic, agent),
            )
        }
        mode = config.BasicSettings.Compile
        self.captures = "graph" in mode and device.type == "cuda"
        self._model_loss, self._imagine = self.world_model.loss, imagine
        self._agent_loss = self.actor_critic.loss
        if mode.startswith("compile"):
            self._model_loss = torch.compile(self._model_loss, dynamic=False)
            self._imagine = torch.compile(self._imagine, dynamic=False)
            self._agent_loss = torch.compile(self._agent_loss, dynamic=False)
        self._amp = config.BasicSettings.UseAmp and has_bfloat16(device)

    def autocast(self) -> torch.autocast:
        """bfloat16 in the networks where ``UseAmp`` says so and the device computes in it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._amp)

    # --------------------------------------------------------------------------------- training

    def train_world_model(self, batch: Batch) -> Metrics:
        """One update of the world model; metrics are scalars left on the device."""
        updater = self.updaters["WorldModel"]
        updater.begin()
        self.world_model.train()
        with self.autocast():
            loss, metrics = self._model_loss(batch)
        norm = updater.step(loss)
        return {f"WorldModel/{name}": value for name, value in metrics.items()} | {
            "WorldModel/grad_norm": norm
        }

    def imagine(self, batch: Batch) -> Trajectory:
        """Rollouts from the replayed states of ``batch``, world model in eval mode."""
        settings = self.config.JointTrainAgent
        self.world_model.eval()
        rows = Batch(*(field[: settings.ImagineBatchSize] for field in batch))
        with self.autocast():
            context = self.world_model.context(rows, settings.ImagineContext)
            return self._imagine(
                self.world_model,
                self.actor_critic,
                context,
                settings.ImagineHorizon,
                self.config.discount,
            )

    def train_actor_critic(self, trajectory: Trajectory) -> Metrics:
        """``AgentUpdate`` updates on imagined rollouts; the metrics of the last."""
        updater = self.updaters["ActorCritic"]
        for update in range(self.config.JointTrainAgent.AgentUpdate):
            updater.begin()
            with self.autocast():
                loss, metrics = self._agent_loss(trajectory, again=update > 0)
            norm = updater.step(loss)
            self.actor_critic.update_slow_critic()
        return {f"ActorCritic/{name}": value for name, value in metrics.items()} | {
            "ActorCritic/grad_norm": norm
        }

    def skipped(self) -> dict[str, float]:
        """Updates skipped so far because they were not finite; waits for the device."""
        return {
            f"{name}/skipped_updates": float(updater.skipped)
            for name, updater in self.updaters.items()
        }

    # ----------------------------------------------------------------------------------- acting

    def initial_state(self, num_envs: int) -> ActingState:
        """The state before the first step of ``num_envs`` environments."""
        deter = torch.zeros(num_envs, self.world_model.width, device=self.device)
        return ActingState(deter, self.world_model.sequence.initial_state(num_envs, self.device))

    def act(
        self, obs: np.ndarray, is_first: np.ndarray, state: ActingState, *, greedy: bool = False
    ) -> np.ndarray:
        """Actions for real observations; ``state`` moves on in place.

        Args:
            obs: (N, *observation_shape).
            is_first: (N,) bool, ``obs`` begins an episode: the state restarts from zeros.
            greedy: the policy's mode instead of a sample.

        Returns:
            (N,) int64 or (N, A) float32 within the action bounds.
        """
        self.world_model.eval()
        if not self.captures:
            inputs = to_device(obs, self.device), to_device(is_first, self.device)
            return self._act(*inputs, state, greedy).cpu().numpy()
        if greedy not in state.recorded:
            state.recorded[greedy] = RecordedActing(
                lambda *inputs: self._act(*inputs, state, greedy), obs, is_first, self.device
            )
        return state.recorded[greedy](obs, is_first)

    @torch.no_grad()
    def _act(self, obs: Tensor, is_first: Tensor, state: ActingState, greedy: bool) -> Tensor:
        """:meth:`act` on the device."""
        model = self.world_model
        with self.autocast():
            latent = sample_index(model.encode(model.codec.prepare(obs)))
            deter, recurrent = state.begin(is_first)
            action = self.actor_critic.act(deter, latent, greedy=greedy)
            deter = model.sequence.step(latent, model.policy.encode(action), recurrent)
        state.move(deter.float(), recurrent)
        return action

    # ------------------------------------------------------------------------------------ saving

    def weights(self) -> dict[str, Any]:
        """What evaluation needs: networks, BatchNorm statistics, return scale."""
        return {
            "world_model": self.world_model.state_dict(),
            "actor_critic": self.actor_critic.state_dict(),
        }

    def load_weights(self, weights: dict[str, Any]) -> None:
        """The inverse of :meth:`weights`."""
        self.world_model.load_state_dict(weights["world_model"])
        self.actor_critic.load_state_dict(weights["actor_critic"])

    def state_dict(self) -> dict[str, Any]:
        """All that training needs to go on: weights and optimisers."""
        return self.weights() | {
            "updaters": {name: updater.state_dict() for name, updater in self.updaters.items()}
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.load_weights(state)
        for name, updater in self.updaters.items():
            updater.load_state_dict(state["updaters"][name])
