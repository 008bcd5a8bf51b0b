"""A counting environment, whose numbers are all known, and its domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from pwm_atari.actor_critic import CategoricalPolicy
from pwm_core.config import Config
from pwm_core.domain import Domain
from pwm_core.envs import Episodes, Step, VectorEnv
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.networks import ImageCodec
from pwm_core.models.world_model import WorldModel
from pwm_core.training.replay_buffer import Field, TransitionSpec

ACTIONS = 3
LAST_REWARD = 100.0
CONFIG = "config_files/atari_tiny.yaml"
DEFAULTS = "config_files/atari.yaml"
TINY = (
    "BasicSettings={ObsShape: [8, 8, 3], FrameSkip: 2}",
    "JointTrainAgent={SampleMaxSteps: 60, BufferMaxLength: 60, BufferWarmUp: 24, BatchSize: 3}",
    "JointTrainAgent={BatchLength: 4, ImagineBatchSize: 2, ImagineContext: 2, ImagineHorizon: 3}",
    "JointTrainAgent={TrainModelEverySteps: 1, TrainAgentEverySteps: 1, LogEverySteps: 5}",
    "JointTrainAgent={SaveEverySteps: 20, VideoLogStep: 1000, EvalEnvs: 2, EvalEpisodes: 4}",
    "Models={Hidden: 16, Stoch: 4, Discrete: 4, NumBin: 21}",
    "Models.WorldModel.Stem=4",
)
"""Overrides with which a training step takes milliseconds."""


class Transition(NamedTuple):
    """The true values of one environment at one step."""

    obs: np.ndarray
    action: int
    reward: float
    done: bool
    is_first: bool
    finished: bool


class CountingEnv(VectorEnv):
    """Episodes of known length; an image whose channels hold environment, episode and step.

    The reward is ``step + 1 + action / 4``, and ``LAST_REWARD`` more at an episode's last step.
    Even episodes end in a final state, and odd ones are cut off at their limit. With ``life``, a
    life is lost at that step of every episode, and the episode continues.

    Args:
        lengths: steps of an episode, per environment.

    Attributes:
        log: per environment, its transitions in order.
    """

    frame_skip = 2

    def __init__(self, lengths: Sequence[int], *, life: int | None = None, seed: int = 0) -> None:
        self.num_envs, self.lengths, self.life, self.seed = len(lengths), lengths, life, seed
        self.observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)
        self.log: list[list[Transition]] = [[] for _ in lengths]
        self.random_steps = 0
        self.reset()

    def reset(self) -> np.ndarray:
        self.episodes = Episodes(self.seed, self.num_envs)
        self.episodes.begin()
        self._episode, self._step = np.zeros((2, self.num_envs), np.int64)
        self._first = np.ones(self.num_envs, bool)
        return self._render()

    def _play_again(self) -> np.ndarray:
        self._episode = self.episodes.numbers.copy()
        self._step = np.array([len(actions) for actions in self.episodes.actions])
        self._first = (self._step == 0) | (self._step - 1 == self.life)
        return self._render()

    def random_actions(self, rng: np.random.Generator) -> np.ndarray:
        self.random_steps += 1
        return super().random_actions(rng)

    def send(self, actions: np.ndarray) -> None:
        self._actions = np.array(actions)
        self.episodes.act(self._actions)

    def recv(self) -> Step:
        before = self._render()
        last = self._step == np.asarray(self.lengths) - 1
        reward = self._step + 1 + self._actions / 4 + LAST_REWARD * last
        lost_life = (self._step == self.life) & ~last
        done = (last & (self._episode % 2 == 0)) | lost_life
        rows = zip(before, self._actions, reward, done, self._first, last, strict=True)
        for log, row in zip(self.log, rows, strict=True):
            log.append(Transition(*row))
        self._first = last | lost_life
        self._episode[last] += 1
        self._step = np.where(last, 0, self._step + 1)
        reward = reward.astype(np.float32)
        finished = self.episodes.add(reward, last)
        return Step(self._render(), reward, done, self._first.copy(), finished)

    def _render(self) -> np.ndarray:
        pixel = np.stack([np.arange(self.num_envs), self._episode, self._step], axis=-1)
        return np.broadcast_to(pixel[:, None, None], (self.num_envs, 8, 8, 3)).astype(np.uint8)

    def returns(self, env: int) -> list[float]:
        """The true returns of the whole episodes of ``env``, from its log."""
        rewards = np.array([t.reward for t in self.log[env]])
        ends = np.flatnonzero([t.finished for t in self.log[env]]) + 1
        return [float(part.sum()) for part in np.split(rewards, ends)[: len(ends)]]

    def close(self) -> None:
        pass


def counting_domain(lengths: Sequence[int], **settings: Any) -> tuple[Domain, list[CountingEnv]]:
    """A domain of counting environments, and the list of those that it has made so far."""
    made: list[CountingEnv] = []

    def make_env(config: Config, task: str, num_envs: int, seed: int) -> CountingEnv:
        cycled = [lengths[i % len(lengths)] for i in range(num_envs)]
        made.append(CountingEnv(cycled, seed=seed, **settings))
        return made[-1]

    def transition(config: Config, env: VectorEnv) -> TransitionSpec:
        return TransitionSpec(Field((8, 8, 3), torch.uint8), Field((), torch.int64))

    def make_world_model(config: Config, env: VectorEnv) -> WorldModel:
        codec = ImageCodec(config.Models, env.observation_space.shape)
        return WorldModel(config.Models, codec, CategoricalPolicy(ACTIONS))

    domain = Domain(
        name="counting",
        defaults=DEFAULTS,
        example_task="count",
        check_task=lambda config, task: None,
        make_env=make_env,
        transition=transition,
        make_world_model=make_world_model,
        make_actor_critic=lambda config, env: ActorCritic(
            config.Models, CategoricalPolicy(ACTIONS)
        ),
        protocol=lambda config: {"name": config.BasicSettings.Protocol},
    )
    return domain, made
