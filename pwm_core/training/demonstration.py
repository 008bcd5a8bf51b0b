"""A recorded trajectory as a replay buffer, from which sequences are added to every update."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pwm_core.config import JointTrainAgent
from pwm_core.envs import VectorEnv
from pwm_core.errors import UserError
from pwm_core.runs.recording import Recording, read_recording
from pwm_core.training.replay_buffer import ReplayBuffer, TransitionSpec


def load_demonstration(
    path: Path,
    task: str,
    env: VectorEnv,
    spec: TransitionSpec,
    settings: JointTrainAgent,
    device: torch.device,
) -> ReplayBuffer:
    """Read the recorded trajectory ``path`` into a replay buffer of one environment.

    Args:
        task, env, spec: what the trajectory must fit.
        settings: the lengths of the sequences to sample, and where to store the trajectory.
        device: the device of sampled batches.

    Raises:
        UserError: the file is no trajectory, or not one of this task.
    """
    recording = read_recording(path)
    refuse_unfit(recording, str(path), task, env, spec)
    count = len(recording.obs)
    need = max(settings.BatchLength, settings.ImagineContext + 1)
    if count < need:
        raise UserError(f"{path} has {count} steps, and sequences of {need} are sampled")
    storage = "memory" if settings.BufferStorage == "disk" else settings.BufferStorage
    buffer = ReplayBuffer(spec, 1, count, device, storage=storage)
    fields = recording.arrays()
    buffer.write(0, {name: torch.from_numpy(fields[name]).unsqueeze(0) for name in spec.fields()})
    return buffer


def refuse_unfit(
    recording: Recording, source: str, task: str, env: VectorEnv, spec: TransitionSpec
) -> None:
    """Check that a trajectory's observations and actions are those of the task.

    Raises:
        UserError: they are not.
    """
    recorded = recording.about.get("task", task)
    if recorded != task:
        raise UserError(f"{source} was recorded on {recorded}, not on {task}")
    for name, field in (("obs", spec.obs), ("action", spec.action)):
        array = getattr(recording, name)
        found = (array.shape[1:], str(array.dtype))
        if found != (field.shape, str(field.dtype).removeprefix("torch.")):
            raise UserError(
                f"{source}: {name} has the shape {found[0]} and the dtype {found[1]}; a step of "
                f"{task} has {field.shape} and {field.dtype}"
            )
    space = env.action_space
    low, high = (0, space.n - 1) if hasattr(space, "n") else (space.low, space.high)
    if (np.min(recording.action, axis=0) < low).any() or (
        np.max(recording.action, axis=0) > high
    ).any():
        raise UserError(f"{source} has actions that {task} does not have")
