"""A small image game without an emulator, for studies on a CPU: catch the falling ball.

Observations are 64 x 64 RGB; there are three actions, and an episode has seven steps.
"""

from __future__ import annotations

import gymnasium
import numpy as np

from pwm_core.envs import Episodes, Step, VectorEnv

CELLS = 8
PIXELS = 64 // CELLS


class Catch(VectorEnv):
    """N games. A ball falls one cell a step from a random column; the paddle moves left, stays or
    moves right. The reward of an episode's last step is 1 for a caught ball and -1 for a missed
    one; all others are 0.

    Args:
        num_envs: N.
        seed: seed of the run; every game derives its own seed from it.
    """

    frame_skip = 1

    def __init__(self, num_envs: int, seed: int) -> None:
        self.num_envs = num_envs
        self.observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)
        self.episodes = Episodes(seed, num_envs)
        self._ball = np.zeros((num_envs, 2), np.int64)  # row, column
        self._paddle = np.zeros(num_envs, np.int64)

    def _begin(self, env: int) -> None:
        rng = np.random.default_rng(self.episodes.seeds[env])
        self._ball[env] = 0, rng.integers(CELLS)
        self._paddle[env] = rng.integers(CELLS)

    def reset(self) -> np.ndarray:
        """Begin the next game everywhere: (N, 64, 64, 3) uint8."""
        self.episodes.begin()
        for env in range(self.num_envs):
            self._begin(env)
        return self._render()

    def _play_again(self) -> np.ndarray:
        """See ``VectorEnv``."""
        for env, actions in enumerate(self.episodes.actions):
            self._begin(env)
            for action in actions:
                self._paddle[env] = np.clip(self._paddle[env] + action - 1, 0, CELLS - 1)
            self._ball[env, 0] += len(actions)
        return self._render()

    def send(self, actions: np.ndarray) -> None:
        """Take ``actions`` (N,) int64: 0 is left, 1 stays, 2 is right."""
        self._actions = np.asarray(actions)
        self.episodes.act(self._actions)

    def recv(self) -> Step:
        """The step that the actions led to."""
        self._paddle = np.clip(self._paddle + self._actions - 1, 0, CELLS - 1)
        self._ball[:, 0] += 1
        done = self._ball[:, 0] == CELLS - 1
        caught = self._ball[:, 1] == self._paddle
        reward = np.where(done, np.where(caught, 1.0, -1.0), 0.0).astype(np.float32)
        finished = self.episodes.add(reward, done)
        for env in np.flatnonzero(done):
            self._begin(env)
        return Step(self._render(), reward, done, done.copy(), finished)

    def _render(self) -> np.ndarray:
        """The games as images (N, 64, 64, 3) uint8."""
        image = np.zeros((self.num_envs, CELLS, CELLS, 3), np.uint8)
        rows = np.arange(self.num_envs)
        image[rows, CELLS - 1, self._paddle] = (40, 160, 255)
        image[rows, self._ball[:, 0], self._ball[:, 1]] = (255, 220, 60)
        return image.repeat(PIXELS, axis=1).repeat(PIXELS, axis=2)

    def close(self) -> None:
        """There is nothing to close."""
