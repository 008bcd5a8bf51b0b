"""Worker processes, each of which holds an object with environments.

A method call has two halves: ``send`` starts the call and ``receive`` waits for its result. Several
workers can therefore compute at the same time while the caller does something else::

    workers = [Worker("package.module:Factory", os.environ) for _ in range(2)]
    for worker in workers:
        worker.send("method", 1, 2)
    results = [worker.receive() for worker in workers]
    stop(workers)

The worker calls ``Factory()``; if that fails, the first ``receive`` raises the error. Before the
worker exits, it calls the object's ``close()``. :class:`InProcess` has the same methods without a
process.

A worker imports only the factory's module. A process that multiprocessing spawns would also run the
caller's main script. It would load torch in each worker, and it would fail for a script without a
main guard. For the same reason, this module does not import torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pkgutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from operator import methodcaller
from typing import Any

from pwm_core.errors import UserError

_RECEIVE_FIRST = "send: the result of the call before has not been received"
_SEND_FIRST = "nothing to receive: there was no send before it"


class WorkerDiedError(UserError):
    """A worker's process has died."""


class InProcess:
    """The interface of :class:`Worker` for an object in the calling process.

    A call runs in ``receive``, so that a GPU can compute what was queued after ``send``.
    """

    def __init__(self, target: Any) -> None:
        self.target = target
        self._call: Callable[[Any], Any] | None = None

    def send(self, method: str, *arguments: Any) -> None:
        """Keep the call for ``receive``."""
        if self._call is not None:
            raise RuntimeError(_RECEIVE_FIRST)
        self._call = methodcaller(method, *arguments)

    def receive(self) -> Any:
        """Make the call and return its result; its exceptions pass through."""
        if self._call is None:
            raise RuntimeError(_SEND_FIRST)
        call, self._call = self._call, None
        return call(self.target)


# The parent's sys.path is set before all other imports, so a worker finds the same modules.
# Batch systems signal every process of a job. The parent answers; a worker that died of the signal
# would cost the run its episodes just before the checkpoint.
_MAIN = """\
import sys, _signal
for number in (_signal.SIGTERM, _signal.SIGUSR1, _signal.SIGUSR2):
    _signal.signal(number, _signal.SIG_IGN)
sys.path[:] = {path!a}
from pwm_dmc.workers import _serve
_serve({descriptor}, {factory!r})
"""


class Worker:
    """The caller's end of a worker process.

    The process exits when :func:`stop` is called, when this object is deleted, and when the calling
    process ends, for whatever reason.

    Args:
        factory: ``package.module:name`` of a function without arguments that returns the object.
        environ: the environment variables of the process.
    """

    def __init__(self, factory: str, environ: Mapping[str, str]) -> None:
        self.pipe, child = multiprocessing.Pipe()
        main = _MAIN.format(path=sys.path, descriptor=child.fileno(), factory=factory)
        self.process = subprocess.Popen(
            [sys.executable, "-c", main],
            pass_fds=(child.fileno(),),
            env=environ,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # only the parent handles Ctrl-C
        )
        child.close()  # the worker has the only copy now, so its death is an end of file here
        self._called = False

    def send(self, method: str, *arguments: Any) -> None:
        """Start a call of one of the object's methods.

        Raises:
            WorkerDiedError: the process has died.
            RuntimeError: the result of the previous call has not been received.
        """
        if self._called:
            raise RuntimeError(_RECEIVE_FIRST)
        try:
            self.pipe.send((method, arguments))
        except OSError:
            raise self._death() from None
        self._called = True

    def receive(self) -> Any:
        """Wait for the call's result.

        Raises:
            WorkerDiedError: the process has died.
            UserError: the call raised a UserError.
            RuntimeError: the call raised another exception, whose traceback is in the message; or
                there was no call.
        """
        if not self._called:
            raise RuntimeError(_SEND_FIRST)
        try:
            error, result = self.pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        self._called = False
        if error is not None:
            raise error(result)
        return result

    def _death(self) -> WorkerDiedError:
        stop([self])
        reason = exit_reason(self.process.returncode)
        return WorkerDiedError(f"a process that runs environments has died: {reason}")


def stop(workers: Sequence[Worker]) -> None:
    """Stop the processes after their current call; it may be called again.

    All of them stop at the same time. Those that are still running after 10 s are killed.
    """
    for worker in workers:
        worker.pipe.close()
    deadline = time.monotonic() + 10
    for worker in workers:
        try:
            worker.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def exit_reason(returncode: int) -> str:
    """Why a process ended, from ``subprocess``'s return code, such as ``killed by SIGKILL``."""
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"


def _serve(descriptor: int, factory: str) -> None:
    """A worker's main loop: answer calls until the parent closes the pipe or dies."""
    pipe = Connection(descriptor)
    failure, target = _answer(lambda name: pkgutil.resolve_name(name)(), factory)
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, arguments = pipe.recv()
            call = methodcaller(method, *arguments)
            pipe.send((failure, target) if failure else _answer(call, target))
    if not failure:
        target.close()  # some objects cannot be freed during the interpreter's shutdown


def _answer(call: Callable[[Any], Any], argument: Any) -> tuple[type[Exception] | None, Any]:
    """None and the result of the call, or the error to raise in the parent and its text."""
    try:
        return None, call(argument)
    except UserError as error:
        return UserError, str(error)
    except Exception:
        return RuntimeError, "in a process that runs environments:\n" + traceback.format_exc()
