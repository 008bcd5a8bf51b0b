"""Writing files while training goes on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]


class Writer:
    """Runs jobs in the order of their submission, in a thread of its own or at once.

    A job that raises is not lost: the next call of :meth:`submit` or :meth:`wait` raises its error,
    and jobs after it are left out. Jobs must work on copies of what training changes, and must not
    touch a device.

    Args:
        background: whether to use a thread. Without one :meth:`submit` runs the job itself.
    """

    def __init__(self, *, background: bool) -> None:
        self.background = background
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def submit(self, job: Job) -> None:
        """Run ``job`` after all jobs before it."""
        if not self.background:
            job()
            return
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def wait(self) -> None:
        """Return when all jobs have run."""
        self._jobs.join()
        self._raise()

    def close(self) -> None:
        """Wait for all jobs and end the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        self._raise()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                if job is None:
                    return
                if self._error is None:
                    job()
            except BaseException as error:
                self._error = error
            finally:
                self._jobs.task_done()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
