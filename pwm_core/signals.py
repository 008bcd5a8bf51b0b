"""Signals that stop a run or ask it for a checkpoint. Both happen between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

STOPPED = 75
"""Exit status after a signal: a checkpoint exists, and ``-resume`` continues (EX_TEMPFAIL)."""


class StoppedError(Exception):
    """A signal ended the run; its text is for the user."""


class Signals:
    """A context in which SIGTERM and SIGINT ask the run to stop, and SIGUSR1 asks for a checkpoint.

    A second SIGTERM or SIGINT ends the process at once, as it would outside this context.

    Attributes:
        stop: the name of the signal that asked the run to stop, or None.
        save: whether a checkpoint has been asked for since the last :meth:`take_save`.
    """

    def __init__(self) -> None:
        self.stop: str | None = None
        self.save = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        # Other threads may not set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask_to_stop)
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._ask_to_save)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = signal.Signals(number).name
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_DFL)

    def _ask_to_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True

    def take_save(self) -> bool:
        """Whether a checkpoint was requested. The request is then cleared."""
        asked, self.save = self.save, False
        return asked
