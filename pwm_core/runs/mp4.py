"""Writing videos as mp4 files that browsers can play."""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from pwm_core.runs.files import replacing

FRAMES_PER_SECOND = 15
"""The frame rate of videos. An Atari step of 4 frames lasts 1/15 s on the console."""


class VideoWriter:
    """Writes an mp4 file (H.264, 4:2:0) frame by frame.

    The file appears under its name when it is complete.

    Args:
        path: path of the file.
        fps: frames per second.
        least: frames are enlarged until both sides have at least this many pixels.
    """

    def __init__(self, path: Path, fps: int = FRAMES_PER_SECOND, *, least: int = 1) -> None:
        self._path, self._fps, self._least = path, fps, least

    def __enter__(self) -> Self:
        """Open the file."""
        import av

        with ExitStack() as stack:
            temporary = stack.enter_context(replacing(self._path))
            self._container = stack.enter_context(av.open(str(temporary), "w", format="mp4"))
            self._stream = self._container.add_stream("libx264", rate=self._fps)
            self._stream.pix_fmt = "yuv420p"
            self._frame = av.VideoFrame
            self._opened = False
            self._open = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append ``frame`` (height, width, 1 or 3) uint8. All frames must have the same size."""
        frame = np.ascontiguousarray(enlarged(frame, self._least))
        if not self._opened:
            self._stream.height, self._stream.width = frame.shape[:2]
            self._opened = True
        picture = self._frame.from_ndarray(frame, format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Complete the file, or remove it after an error."""
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))  # flush the encoder
        except BaseException as failure:
            self._open.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._open.__exit__(kind, *error)


def enlarged(frame: np.ndarray, least: int) -> np.ndarray:
    """Enlarge a frame by a whole factor and make it RGB.

    Args:
        frame: (height, width, 1 or 3) uint8.
        least: smallest size of both sides of the result in pixels.

    Returns:
        (height, width, 3) uint8, whose sides are even.
    """
    factor = -(-least // min(frame.shape[:2]))
    if factor > 1 and factor % 2:
        factor += 1
    frame = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = (side - side % 2 for side in frame.shape[:2])  # 4:2:0 halves both
    return np.broadcast_to(frame[:height, :width], (height, width, 3))


def write_video(path: Path, frames: np.ndarray, fps: int = FRAMES_PER_SECOND) -> None:
    """Write ``frames`` (T, height, width, 3) uint8 to ``path``."""
    with VideoWriter(path, fps) as video:
        for frame in frames:
            video.write(frame)


def read_video(video: Path | bytes) -> tuple[np.ndarray, float]:
    """All frames of a video, (T, height, width, 3) uint8, and the frames per second.

    Args:
        video: path of the file, or its content.

    Raises:
        OSError: the file is missing or is not a video.
    """
    import av

    source = io.BytesIO(video) if isinstance(video, bytes) else str(video)
    with av.open(source) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        rate = container.streams.video[0].average_rate
    if not frames:
        raise OSError("the video has no frames")
    return np.stack(frames), float(rate or FRAMES_PER_SECOND)
