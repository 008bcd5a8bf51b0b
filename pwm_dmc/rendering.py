"""Rendering with dm_control on a machine without a display.

dm_control reads ``MUJOCO_GL`` once, when it is imported. It is therefore imported late. A worker
that draws imports it with a renderer that works, which :func:`process_environment` sets. All other
processes import it without a renderer.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator

from pwm_core.errors import UserError
from pwm_dmc.workers import exit_reason

_RENDERERS = ("egl", "osmesa")  # EGL first: it uses the GPU where there is one
_NO_RENDERER = "disabled"
_PACKAGES = {"egl": "libegl1 libopengl0", "osmesa": "libosmesa6"}  # in Debian and Ubuntu


def working_renderer() -> str:
    """The value of ``MUJOCO_GL`` with which this machine can render without a display.

    If the user has set a value, only that is tried; otherwise EGL and then OSMesa are. Each is
    tried by drawing a frame in a separate process. The result is cached.

    Raises:
        UserError: none works; the message names the Debian packages to install.
    """
    return _working_renderer(os.environ.get("MUJOCO_GL"))


@functools.cache
def _working_renderer(requested: str | None) -> str:
    reasons, candidates = [], _RENDERERS if requested is None else (requested,)
    for renderer in candidates:
        problem = try_renderer(renderer)
        if not problem:
            return renderer
        reasons.append(f"{renderer}: {problem}")
    advice = "unset it, or set it to egl or osmesa"
    if set(candidates) <= set(_RENDERERS):
        installs = [f"'apt-get install {_PACKAGES[renderer]}'" for renderer in candidates]
        advice = "try " + " or ".join(installs)
    culprit = "no headless renderer works" if requested is None else "MUJOCO_GL cannot render"
    raise UserError(f"{culprit} ({'; '.join(reasons)}): {advice}, or use -obs_type proprio")


_DRAW_A_BALL = """
from dm_control import mujoco
ball = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>'
physics = mujoco.Physics.from_xml_string(ball)
frame = physics.render(64, 64)
physics.free()
if frame.min() == frame.max():
    raise SystemExit("the frame is blank")
"""


def try_renderer(renderer: str) -> str:
    """Draw a frame in a separate process; returns the error's text, or an empty string."""
    command = [sys.executable, "-c", _DRAW_A_BALL]
    environment = process_environment(renderer)
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "hangs"
    if run.returncode == 0:
        return ""
    return run.stderr.strip().rpartition("\n")[2] or exit_reason(run.returncode)


def process_environment(renderer: str | None) -> dict[str, str]:
    """The environment variables of a process that draws with ``renderer`` (None: never draws)."""
    # dm_control sets PYOPENGL_PLATFORM itself, and refuses a renderer that contradicts it.
    inherited = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"}
    return inherited | {"MUJOCO_GL": _NO_RENDERER if renderer is None else renderer}


@contextlib.contextmanager
def without_renderer() -> Iterator[None]:
    """A context in which dm_control is imported without OpenGL; it restores ``os.environ``."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = _NO_RENDERER
    try:
        yield
    finally:
        if before is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = before
