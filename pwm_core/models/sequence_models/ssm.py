"""The state-space baseline: a linear recurrence with a learned, constant, diagonal transition.

It is parallel and can be reset, but it does not select: what is kept does not depend on the input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pwm_core.config import Models
from pwm_core.errors import UserError
from pwm_core.models.scan import linear_recurrence
from pwm_core.models.sequence_models.mixer_blocks import Mixer, MixerModel

LARGEST = 0.999
"""Largest modulus of a transition at the start of training."""


def start_transitions(count: int) -> tuple[nn.Parameter, nn.Parameter]:
    """``w`` and ``phi`` (E,) of ``count`` transitions that are uniform on the disc."""
    modulus = LARGEST * torch.rand(count).sqrt()
    rate = (-modulus.clamp_min(1e-6).log()).log()
    return nn.Parameter(rate), nn.Parameter(2 * math.pi * torch.rand(count))


class SSMMixer(Mixer):
    """A diagonal state-space model, the linear recurrent unit of Orvieto et al. (2023)::

        x_t = a * x_{t-1} + sqrt(1 - |a|^2) * (B u_t)         complex, E = D / 2 of them
        o_t = Re(C x_t)
        a   = exp(-exp(w) + i phi)                            w, phi learned, E of each

    At the start, ``a`` is uniform on the disc of radius 0.999. The parallel pass is a scan
    (``Models.WorldModel.SSMScan``). With ``fft`` it is a convolution with the powers of ``a``, in
    O(T log T); that has no place for resets, so batches with a reset inside are scanned.
    """

    def __init__(self, models: Models) -> None:
        super().__init__()
        width, count = models.Hidden, models.Hidden // 2
        self.scan = models.WorldModel.SSMScan
        self.input = nn.Linear(width, 2 * count, bias=False)  # B, real and imaginary parts
        self.output = nn.Linear(2 * count, width, bias=False)  # C
        self.rate, self.phase = start_transitions(count)

    def transition(self) -> Tensor:
        """``log a`` (E,) complex."""
        return torch.complex(-self.rate.exp(), self.phase)

    def _update(self, u: Tensor) -> Tensor:
        """What the input ``u`` (..., D) adds to the state: (..., E) complex."""
        scale = (1 - torch.exp(-2 * self.rate.exp())).sqrt()
        real, imaginary = self.input(u).to(scale.dtype).chunk(2, dim=-1)
        return torch.complex(real * scale, imaginary * scale)

    def _read(self, state: Tensor) -> Tensor:
        """States (..., E) complex -> outputs (..., D)."""
        return self.output(torch.cat([state.real, state.imag], dim=-1))

    def forward(self, u: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """A whole sequence; see :class:`Mixer`."""
        update = self._update(u)  # (B, T, E)
        with torch.autocast(u.device.type, enabled=False):
            if self.scan == "fft" and not _has_reset_inside(is_first):
                states = _convolve(update, self.transition())
            else:
                decay = self.transition().exp().expand_as(update)
                decay = decay.masked_fill(is_first.unsqueeze(-1), 0.0)
                backend = "odd_even" if self.scan == "fft" else self.scan
                states = linear_recurrence(decay, update, backend=backend)
        return self._read(states), states

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step; see :class:`Mixer`."""
        state = torch.addcmul(self._update(u), self.transition().exp(), state)
        return self._read(state), state

    def initial_state(self, count: int, device: torch.device) -> Tensor:
        """Complex zeros (N, E), in the precision of the parameters."""
        zeros = torch.zeros(count, len(self.rate), dtype=self.rate.dtype, device=device)
        return torch.complex(zeros, zeros)


def refuse_capture(scan: str, *, captured: bool) -> None:
    """Refuse a scan that cannot be recorded as a CUDA graph.

    Args:
        scan: ``Models.WorldModel.SSMScan``.
        captured: whether the step is recorded.

    Raises:
        UserError: the scan is ``fft``, and the step is recorded.
    """
    if scan == "fft" and captured:
        raise UserError(
            "Models.WorldModel.SSMScan: fft looks at the resets of a batch, which a CUDA graph "
            "cannot; use -set Models.WorldModel.SSMScan=odd_even or BasicSettings.Compile=off"
        )


def _has_reset_inside(is_first: Tensor) -> bool:
    """Whether any step but the first of ``is_first`` (B, T) is a reset. It waits for the device.

    Raises:
        UserError: a CUDA graph is being recorded, which cannot branch.
    """
    refuse_capture("fft", captured=is_first.is_cuda and torch.cuda.is_current_stream_capturing())
    return bool(is_first[:, 1:].any())


def _convolve(update: Tensor, log_decay: Tensor) -> Tensor:
    """``x_t = sum_{j<=t} a^(t-j) update_j`` by FFT.

    Args:
        update: (B, T, E) complex.
        log_decay: (E,) complex ``log a``.

    Returns:
        (B, T, E).
    """
    length = update.shape[1]
    time = torch.arange(length, device=update.device, dtype=log_decay.real.dtype)
    powers = torch.exp(time.unsqueeze(1) * log_decay)  # (T, E)
    spectrum = torch.fft.fft(update, 2 * length, dim=1) * torch.fft.fft(powers, 2 * length, dim=0)
    return torch.fft.ifft(spectrum, dim=1)[:, :length]


class SSM(MixerModel):
    """Input layer and blocks of diagonal state-space models: (z_t, a_t) -> deter_t."""

    make_mixer = SSMMixer
