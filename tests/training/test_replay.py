"""The replay buffer: its contents, its samples and its storage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pwm_core.errors import UserError
from pwm_core.training.replay_buffer import Field, ReplayBuffer, TransitionSpec

CPU = torch.device("cpu")
SPEC = TransitionSpec(obs=Field((2,), torch.int64), action=Field((), torch.int64))
STORAGES = ("device", "memory", "disk")


def make_replay(
    num_envs: int = 1, capacity: int = 20, storage: str = "memory", directory: Path | None = None
) -> ReplayBuffer:
    return ReplayBuffer(SPEC, num_envs, capacity, CPU, storage=storage, directory=directory)


def fill(replay: ReplayBuffer, steps: int, begin: int = 0) -> None:
    """Add steps with known values.

    Step t of environment e has the observation (t, e), the action 2t and the reward t + e/10. Odd
    steps are done, and multiples of 5 are first.
    """
    env = np.arange(replay.num_envs)
    for t in range(begin, begin + steps):
        obs = np.stack([np.full_like(env, t), env], axis=1)
        zeros = np.zeros(replay.num_envs)
        replay.add(
            obs,
            zeros.astype(int) + 2 * t,
            (t + env / 10).astype(np.float32),
            zeros + t % 2 > 0,
            zeros + t % 5 == 0,
        )


@pytest.mark.parametrize("added", [4, 13, 19, 20, 21, 27, 40, 59, 65])
@pytest.mark.parametrize("length", [1, 4])
def test_sequences_are_consecutive_and_every_start_is_reached(length: int, added: int) -> None:
    """A full ring stays full when it wraps, and no sequence crosses the position written next.

    The test stops before, at and after several wraps.
    """
    replay = make_replay()
    fill(replay, added)
    held = min(added, 20)
    assert replay.size == held
    batch = replay.sample(6000, length)
    steps = batch.obs[..., 0]
    assert (steps.diff(dim=1) == 1).all()
    counts = torch.bincount(steps[:, 0], minlength=added - length + 1)
    oldest = added - held
    assert counts[:oldest].sum() == 0
    starts = counts[oldest:].double()
    assert len(starts) == held - length + 1
    expected = 6000 / len(starts)
    chi_square = ((starts - expected).square() / expected).sum()
    # 5 standard deviations above the mean of the chi-square distribution.
    freedom = len(starts) - 1
    assert chi_square <= freedom + 5 * (2 * freedom) ** 0.5
    assert (starts > 0).all()


def test_a_batch_holds_the_steps_as_they_were_stored() -> None:
    replay = make_replay(num_envs=3, capacity=60)
    fill(replay, 33)
    batch = replay.sample(300, 5)
    step, env = batch.obs.unbind(-1)
    shapes = {name: tuple(value.shape) for name, value in batch._asdict().items()}
    assert shapes == {"obs": (300, 5, 2)} | dict.fromkeys(batch._fields[1:], (300, 5))
    assert [value.dtype for value in batch] == [
        *(torch.int64, torch.int64, torch.float32, torch.bool, torch.bool)
    ]
    assert (env == env[:, :1]).all()
    assert (batch.action == 2 * step).all()
    torch.testing.assert_close(batch.reward, step + env / 10)
    assert (batch.done == (step % 2 == 1)).all()
    assert (batch.is_first == (step % 5 == 0)).all()


def test_images_and_continuous_actions_keep_their_type() -> None:
    spec = TransitionSpec(Field((8, 8, 3), torch.uint8), Field((4,), torch.float32))
    replay = ReplayBuffer(spec, 2, 21, CPU, storage="memory")
    assert replay.length == 10  # of each environment
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 2, 8, 8, 3), dtype=np.uint8)
    actions = rng.normal(size=(6, 2, 4)).astype(np.float32)
    for image, action in zip(images, actions, strict=True):
        replay.add(image, action, np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))
    batch = replay.sample(2, 6)
    assert (batch.obs.dtype, batch.action.dtype) == (torch.uint8, torch.float32)
    order = [0, 1] if (batch.obs[0].numpy() == images[:, 0]).all() else [1, 0]
    np.testing.assert_array_equal(batch.obs, images[:, order].swapaxes(0, 1))
    np.testing.assert_array_equal(batch.action, actions[:, order].swapaxes(0, 1))
    assert spec.nbytes(10) == 10 * (8 * 8 * 3 + 4 * 4 + 4 + 1 + 1)


@pytest.mark.parametrize(
    ("num_envs", "batch_size", "shares"), [(4, 16, {4}), (3, 16, {5, 6}), (5, 2, {0, 1})]
)
def test_environments_contribute_equally(num_envs: int, batch_size: int, shares: set[int]) -> None:
    replay = make_replay(num_envs, 20 * num_envs)
    fill(replay, 25)
    total = torch.zeros(num_envs, dtype=torch.int64)
    for _ in range(600):
        counts = torch.bincount(replay.sample(batch_size, 4).obs[:, 0, 1], minlength=num_envs)
        assert set(counts.tolist()) <= shares
        total += counts
    mean = 600 * batch_size / num_envs
    assert (total - mean).abs().max() < 0.15 * mean


def test_too_few_steps_are_refused() -> None:
    replay = make_replay(num_envs=2, capacity=40)
    fill(replay, 3)
    with pytest.raises(ValueError, match="3 steps are stored, a sequence needs 4"):
        replay.sample(2, 4)


def test_every_storage_gives_the_same_samples(tmp_path: Path) -> None:
    batches = []
    for storage in (*STORAGES, "auto"):
        replay = make_replay(2, 40, storage, tmp_path)
        fill(replay, 31)
        torch.manual_seed(7)
        batches.append(replay.sample(16, 5))
    for other in batches[1:]:
        for one, two in zip(batches[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    sizes = {"obs": 16, "action": 8, "reward": 4, "done": 1, "is_first": 1}
    assert files == {f"{name}.bin": 40 * size for name, size in sizes.items()}


@pytest.mark.parametrize("storage", [*STORAGES, "auto"])
def test_too_big_is_one_clear_line(tmp_path: Path, storage: str) -> None:
    with pytest.raises(UserError) as raised:
        make_replay(1, 10**15, storage, tmp_path)  # 30 petabytes
    message = str(raised.value)
    assert "\n" not in message
    assert "replay" in message
    assert "BufferMaxLength" in message


def test_a_replay_that_the_disk_cannot_hold_is_refused(tmp_path: Path) -> None:
    """Without the check, a sparse file would be created, and a full disk would cause a SIGBUS."""
    transitions = 2 * shutil.disk_usage(tmp_path).free // SPEC.nbytes(1)
    with pytest.raises(UserError, match="free"):
        make_replay(1, transitions, "disk", tmp_path)


def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    make_replay(1, 1000, "memory")
    monkeypatch.setattr("pwm_core.runtime._container_bytes", lambda: 1000)
    with pytest.raises(UserError, match="BufferMaxLength"):
        make_replay(1, 1000, "memory")


def test_disk_needs_a_directory() -> None:
    with pytest.raises(ValueError, match="directory"):
        make_replay(storage="disk")
