"""Metrics and videos: always a local ``metrics.jsonl``, and wandb and TensorBoard if requested."""

from __future__ import annotations

import contextlib
import json
import math
import netrc
import os
import queue
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pwm_core.errors import UserError
from pwm_core.runs.mp4 import write_video
from pwm_core.runs.writer import Writer

WANDB_MODES = ("online", "offline", "disabled")
WANDB_TIMEOUT = 30
"""Seconds to wait for wandb's server before recording offline."""


class Sink(Protocol):
    """A receiver of metrics and videos."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Receive all scalars of one step."""

    def video(self, step: int, name: str, frames: np.ndarray, path: Path) -> None:
        """Receive ``frames`` (T, height, width, 3) uint8, already written to ``path`` as mp4."""

    def close(self) -> None:
        """Write everything and close."""


class JsonLines:
    """A file with one JSON object per logged step, written before :meth:`log` returns.

    A number that is not finite becomes null. While the disk is full, lines wait in memory.

    Args:
        path: appended to.
        fresh: whether to empty it first.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        empty = os.O_TRUNC if fresh else 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | empty, 0o666)
        self._end = os.fstat(self._file).st_size
        self._waiting: list[bytes] = []

    def state_dict(self) -> dict[str, Any]:
        """Sync the file. Returns its size and the pending lines."""
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        return {"size": self._end, "waiting": [line.decode() for line in self._waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut off what was written since :meth:`state_dict`; report lines that are missing."""
        if self._end < state["size"]:
            self._end, last = self._whole_lines()
            print(
                "warning: metrics.jsonl is shorter than when the checkpoint was written: its lines "
                f"after step {last} are lost; training continues without them"
            )
        self._end = min(self._end, state["size"])
        os.ftruncate(self._file, self._end)
        self._waiting = [line.encode() for line in state["waiting"]]

    def _whole_lines(self) -> tuple[int, int]:
        """The number of bytes of all complete lines of the file, and the step of the last one."""
        text = os.pread(self._file, self._end, 0)
        whole = text[: text.rfind(b"\n") + 1]
        try:
            return len(whole), int(json.loads(whole.splitlines()[-1])["step"])
        except (IndexError, ValueError, KeyError, TypeError):
            return len(whole), 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append ``{"step": ..., name: value, ...}``."""
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._waiting.append((json.dumps({"step": step, **finite}) + "\n").encode())
        self._write()

    def _write(self) -> None:
        """Write the pending lines. A line that does not fit completely is removed again."""
        warned = len(self._waiting) > 1
        while self._waiting:
            line = self._waiting[0]
            try:
                written = os.pwrite(self._file, line, self._end)
                reason = "no space is left"
            except OSError as error:
                written, reason = 0, str(error.strerror)
            if written < len(line):
                os.ftruncate(self._file, self._end)
                if not warned:
                    print(f"warning: metrics.jsonl: {reason}; its lines wait in memory")
                return
            self._end += len(line)
            self._waiting.pop(0)

    def video(self, step: int, name: str, frames: np.ndarray, path: Path) -> None:
        """Do nothing, because videos are separate files."""

    def close(self) -> None:
        """Close the file."""
        self._write()
        if self._waiting:
            print(f"warning: metrics.jsonl: {len(self._waiting)} lines could not be written")
        os.close(self._file)


def wandb_mode() -> str:
    """``online`` if a key is set, else ``offline``. The variable ``WANDB_MODE`` takes
    precedence."""
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
    """Weights & Biases, online with a key and offline without one.

    Args:
        directory: the run's folder.
        name: the run's name.
        project: the project's name.
        config: the config shown on the run's page.
        run_id: wandb's id of the run. Using the same id continues the run.

    Raises:
        UserError: wandb is not installed, or cannot start.
    """

    def __init__(
        self, directory: Path, name: str, project: str, config: dict[str, Any], run_id: str
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("wandb is not installed: pip install wandb") from None
        self._wandb, mode = wandb, wandb_mode()
        if mode not in WANDB_MODES:
            raise UserError(
                f"WANDB_MODE={mode} is not valid: it must be {', '.join(WANDB_MODES)}, or unset"
            )
        directory.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", init_timeout=WANDB_TIMEOUT)
        why = "WANDB_MODE is offline" if os.environ.get("WANDB_MODE") else "no API key is set"
        self._begin(mode, why, project=project, name=name, dir=directory, id=run_id, resume="allow",
                    config=config, settings=settings,
                    group=os.environ.get("WANDB_RUN_GROUP") or config.get("task"))  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def _begin(self, mode: str, why: str, **options: Any) -> None:
        """Start wandb. If it should be online and cannot be, it starts offline.

        Args:
            why: the reason for ``mode``, which is printed if the run is recorded offline.

        Raises:
            UserError: it cannot start offline either.
        """
        try:
            self._run = self._wandb.init(mode=mode, **options)
        except Exception as error:  # not all of these errors are wandb.Error
            reason = " ".join(str(error).split())[:300]
            if mode != "online":
                raise UserError(f"wandb cannot start: {reason}") from None
            self._wandb.teardown()  # its process still holds the run's id
            self._begin("offline", f"the server cannot be used ({reason})", **options)
            return
        if mode == "offline":
            print(
                f"wandb: {why}, so the run is recorded offline; "
                f"to upload it: wandb sync {Path(self._run.dir).parent}"
            )

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
    """Event files for TensorBoard.

    Args:
        directory: the run's folder.
        config: the resolved config as YAML, shown as text.
        after: the step that a resumed run continues from. Later records of the run are not shown.
    """

    def __init__(self, directory: Path, config: str, after: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "tensorboard is not installed: pip install tensorboard, or use -logger none"
            ) from None
        self._writer = SummaryWriter(
            str(directory / "tensorboard"), purge_step=after + 1 if after else None
        )
        # Markdown shows indented text as code
        self._writer.add_text("config", textwrap.indent(config, "    "), after)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write the scalars of one step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def video(self, step: int, name: str, frames: np.ndarray, path: Path) -> None:
        """Write a video as its frames side by side, (3, H, T*W)."""
        strip = np.concatenate(list(frames[:: max(1, len(frames) // 8)]), axis=1)
        self._writer.add_image(name, strip, step, dataformats="HWC")

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Tracker:
    """Collects the metrics of a step and passes them to all sinks as one record.

    A run needs only ``metrics.jsonl``. If a sink or a video fails, a warning is printed and
    training continues.

    Args:
        metrics: the file of JSON lines, which is written first.
        videos: the folder of video files.
        sinks: further receivers.
        writer: writes the video files; by default at once.
    """

    def __init__(
        self, metrics: JsonLines, videos: Path, sinks: list[Sink], writer: Writer | None = None
    ) -> None:
        self.metrics, self.writer = metrics, writer or Writer(background=False)
        self._filmed: queue.SimpleQueue[tuple[int, str, np.ndarray, Path]] = queue.SimpleQueue()
        self._sinks: list[Sink] = [metrics, *sinks]
        self._videos = videos
        self._step, self._pending = 0, dict[str, float]()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add ``metrics`` to the record of ``step``. It is written when a later step comes."""
        if step != self._step:
            self.flush()
            self._step = step
        self._pending.update(metrics)

    def video(self, step: int, name: str, frames: np.ndarray) -> None:
        """Write ``frames`` (T, height, width, 3) uint8 as an mp4, and pass them to all sinks.

        The frames may not change afterwards. The sinks get them when the file is there.
        """
        self.writer.submit(partial(self._film, step, name, frames))
        self._show_filmed()

    def _film(self, step: int, name: str, frames: np.ndarray) -> None:
        """Write a video; a job of the writer."""
        path = self._videos / f"{name.split('/')[-1].lower()}_{step:09d}.mp4"
        try:
            write_video(path, frames)
        except Exception as error:  # PyAV's errors have no class in common
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())
            print(f"warning: {path} could not be written: {reason[:300]}; training continues")
            return
        self._filmed.put((step, name, frames, path))

    def _show_filmed(self) -> None:
        """Pass the videos that were written meanwhile to all sinks."""
        while not self._filmed.empty():
            video = self._filmed.get()
            self._each(lambda sink, video=video: sink.video(*video))

    def flush(self) -> None:
        """Write the pending record."""
        self._show_filmed()
        if self._pending:
            self._each(lambda sink: sink.log(self._step, self._pending))
            self._pending = {}

    def _each(self, call: Callable[[Sink], None]) -> None:
        """Call every sink. A sink that fails is dropped."""
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                if sink is self.metrics:
                    raise
                self._sinks.remove(sink)
                name, reason = type(sink).__name__, " ".join(str(error).split())
                print(f"warning: {name} failed and is left out from now on: {reason[:300]}")

    def close(self) -> None:
        """Wait for the writer, write the pending record and close every sink."""
        try:
            self.writer.close()
        finally:
            self.flush()
            self._each(lambda sink: sink.close())


def progress_bar(total: int, unit: str, *, initial: int = 0, phase: str = "") -> tqdm:
    """A bar with the mean speed and the remaining time, after the name of the ``phase``. In a log
    file it writes only one line every ten seconds."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=phase or None,
        smoothing=0.0,
        mininterval=interval,
        dynamic_ncols=True,
    )


class MeanMetrics:
    """Means of device scalars over many updates. Only :meth:`take` waits for the device.

    Values that are not finite are left out of a mean. If all of them are, the mean is NaN.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}  # names -> (2, names) sums and counts

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the scalars of one update, without a copy to the host."""
        names = tuple(metrics)
        values = torch.stack([value.detach().float() for value in metrics.values()]).double()
        finite = torch.isfinite(values)
        pair = torch.stack([values.masked_fill(~finite, 0.0), finite.double()])
        self._sums[names] = self._sums[names] + pair if names in self._sums else pair

    def __bool__(self) -> bool:
        """Whether anything was added since the last :meth:`take`."""
        return bool(self._sums)

    def take(self) -> dict[str, float]:
        """The means since the last call, by name."""
        sums: dict[str, tuple[float, float]] = {}
        for names, pair in self._sums.items():
            for name, total, count in zip(names, *pair.tolist(), strict=True):
                before = sums.get(name, (0.0, 0.0))
                sums[name] = before[0] + total, before[1] + count
        self._sums = {}
        return {name: total / n if n else math.nan for name, (total, n) in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"names": [list(names) for names in self._sums], "sums": list(self._sums.values())}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """The inverse of :meth:`state_dict`."""
        sums = (pair.to(device) for pair in state["sums"])
        self._sums = dict(zip(map(tuple, state["names"]), sums, strict=True))
