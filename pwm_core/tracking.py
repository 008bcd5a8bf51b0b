"""Metrics and videos: always a local ``metrics.jsonl``; wandb and TensorBoard when asked for."""

from __future__ import annotations

import json
import netrc
import os
import sys
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pwm_core.errors import UserError

LOGGERS = ("wandb", "tensorboard")
WANDB_MODES = ("online", "offline", "disabled")
WANDB_TIMEOUT = 30
"""Seconds to wait for wandb's server before recording offline."""
FRAMES_PER_SECOND = 15


class Sink(Protocol):
    """Somewhere metrics go."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """All scalars of one step."""

    def video(self, step: int, name: str, frames: np.ndarray, path: Path) -> None:
        """``frames`` (T, H, W, 3) uint8, already written to ``path`` as mp4."""

    def close(self) -> None:
        """Flush and let go."""


class JsonLines:
    """One JSON object per logged step, flushed line by line."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the run

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append ``{"step": ..., name: value, ...}``."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def video(self, step: int, name: str, frames: np.ndarray, path: Path) -> None:
        """Videos are files of their own."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def wandb_mode() -> str:
    """``online`` when a key is set, else ``offline``; the variable ``WANDB_MODE`` decides first."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host or "")
    except (OSError, netrc.NetrcParseError):
        known = None
    return "online" if known else "offline"


class Wandb:
    """Weights & Biases, online with a key and offline without one."""

    def __init__(self, directory: Path, name: str, project: str, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("wandb is not installed: pip install wandb, or -logger none") from None
        self._wandb = wandb
        mode = wandb_mode()
        if mode not in WANDB_MODES:
            raise UserError(
                f"WANDB_MODE={mode} is not valid: it must be {', '.join(WANDB_MODES)}, or unset"
            )
        if mode == "offline":
            print(
                "wandb: no API key is set, so the run is recorded offline in "
                f"{directory / 'wandb'}; `wandb sync` uploads it, -logger none turns this off"
            )
        directory.mkdir(parents=True, exist_ok=True)

        def begin(mode: str) -> Any:
            return wandb.init(
                project=project,
                name=name,
                dir=directory,
                config=config,
                group=config.get("task"),
                mode=mode,
                settings=wandb.Settings(silent=True, console="off", init_timeout=WANDB_TIMEOUT),
            )

        try:
            self._run = begin(mode)
        except wandb.Error as error:
            if mode != "online":
                raise UserError(f"wandb cannot start: {error}; or use -logger none") from None
            print(f"wandb: the server cannot be used ({error}); the run is recorded offline")
            self._run = begin("offline")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Queue the scalars of one step; the upload happens in wandb's own process."""
        self._run.log({"step": step, **metrics})

    def video(self, step: int, name: str, frames: np.ndarray, path: Path) -> None:
        """Queue a video."""
        self._run.log({"step": step, name: self._wandb.Video(str(path), format="mp4")})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class TensorBoard:
    """Event files for TensorBoard."""

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "tensorboard is not installed: pip install tensorboard, or -logger none"
            ) from None
        self._writer = SummaryWriter(str(directory / "tensorboard"))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write the scalars of one step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def video(self, step: int, name: str, frames: np.ndarray, path: Path) -> None:
        """TensorBoard shows a video as its frames side by side: (3, H, T*W)."""
        strip = np.concatenate(list(frames[:: max(1, len(frames) // 8)]), axis=1)
        self._writer.add_image(name, strip, step, dataformats="HWC")

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def write_video(path: Path, frames: np.ndarray, fps: int = FRAMES_PER_SECOND) -> None:
    """``frames`` (T, H, W, 3) uint8 to ``path`` as H.264 that a browser plays."""
    import imageio.v3 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(path, frames, plugin="pyav", codec="libx264", fps=fps)


def parse_loggers(text: str) -> list[str]:
    """``wandb,tensorboard`` or ``none`` -> names.

    Raises:
        UserError: an unknown name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["none"] or not names:
        return []
    for name in names:
        if name not in LOGGERS:
            raise UserError(
                f"-logger {text}: {name!r} is not one of {', '.join(LOGGERS)}; or write none"
            )
    return names


class Tracker:
    """Gathers the metrics of a step and hands them on once, as one record.

    Args:
        folder: the run's folder.
        videos: where video files go.
        sinks: beside the JSON lines, which always come first.
    """

    def __init__(self, metrics: Path, videos: Path, sinks: list[Sink]) -> None:
        self._sinks: list[Sink] = [JsonLines(metrics), *sinks]
        self._videos = videos
        self._step, self._pending = 0, dict[str, float]()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add ``metrics`` to the record of ``step``; it is written when a later step comes."""
        if step != self._step:
            self.flush()
            self._step = step
        self._pending.update(metrics)

    def video(self, step: int, name: str, frames: np.ndarray) -> None:
        """Keep ``frames`` (T, H, W, 3) uint8 as ``videos/<name>_<step>.mp4`` and hand them on."""
        path = self._videos / f"{name.split('/')[-1].lower()}_{step:09d}.mp4"
        write_video(path, frames)
        for sink in self._sinks:
            sink.video(step, name, frames, path)

    def flush(self) -> None:
        """Write the pending record."""
        if self._pending:
            for sink in self._sinks:
                sink.log(self._step, self._pending)
            self._pending = {}

    def close(self) -> None:
        """Write what is pending and close every sink."""
        self.flush()
        for sink in self._sinks:
            sink.close()


def progress_bar(total: int, unit: str, *, initial: int = 0) -> tqdm:
    """A bar with mean speed and time left; in a log file a line every ten seconds is enough."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        smoothing=0.0,
        mininterval=interval,
        dynamic_ncols=True,
    )


class MeanMetrics:
    """Means of device scalars over many updates; the device is asked once, at :meth:`take`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add one update's scalars, which stay where they are."""
        for name, value in metrics.items():
            if name in self._sums:
                self._sums[name] += value
                self._counts[name] += 1
            else:
                self._sums[name] = value.detach().float().clone()
                self._counts[name] = 1

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        if not self._sums:
            return {}
        values = torch.stack(list(self._sums.values())).tolist()
        counts = self._counts.values()
        means = {n: v / c for n, v, c in zip(self._sums, values, counts, strict=True)}
        self._sums, self._counts = {}, {}
        return means
