"""The GRU and the state-space model: their equations."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from pwm_core.config_file import load_config
from pwm_core.errors import UserError
from pwm_core.models.sequence_models import mixer_blocks, ssm
from pwm_core.models.sequence_models.gru import GRUMixer
from pwm_core.models.sequence_models.ssm import SSMMixer, refuse_capture
from tests.helpers import WIDTH, Data, disturb, load_small

FIRSTS = ((0, 0), (0, 4), (1, 3), (1, 4), (2, 6))
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def make_inputs(firsts: tuple[tuple[int, int], ...] = FIRSTS, steps: int = 9) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    u = torch.randn(3, steps, WIDTH, generator=generator, dtype=torch.float64)
    return [u, Data(3, steps, firsts).batch(load_small()).is_first]


@torch.no_grad()
def test_the_gru_is_torchs() -> None:
    """Every episode is what torch's own GRU computes from zeros."""
    torch.manual_seed(0)
    mixer = GRUMixer(load_small().Models).double()
    other = nn.GRU(WIDTH, WIDTH, batch_first=True).double()
    for name, value in mixer.cell.named_parameters():
        getattr(other, f"{name}_l0").copy_(value)
    u, is_first = make_inputs()
    output, states = mixer(u, is_first)
    assert torch.equal(output, states)
    for row in range(3):
        begins = [0, *is_first[row, 1:].nonzero().flatten().add(1).tolist(), 9]
        for begin, end in itertools.pairwise(begins):
            expected, _ = other(u[row : row + 1, begin:end])
            torch.testing.assert_close(output[row : row + 1, begin:end], expected, **EXACT)


@pytest.mark.parametrize("scan", ["sequential", "odd_even", "kogge_stone", "fft"])
@pytest.mark.parametrize("firsts", [FIRSTS, ((1, 0),)], ids=["resets", "no reset inside"])
@torch.no_grad()
def test_the_state_space_model_computes_its_equations(scan: str, firsts: tuple) -> None:
    torch.manual_seed(0)
    mixer = SSMMixer(load_small(f"Models.WorldModel.SSMScan={scan}").Models).double()
    disturb(mixer)
    u, is_first = make_inputs(firsts)
    output, states = mixer(u, is_first)
    half = WIDTH // 2
    a = torch.exp(torch.complex(-mixer.rate.exp(), mixer.phase))
    into = torch.complex(*mixer.input.weight.chunk(2))  # B (E, D)
    out = torch.complex(mixer.output.weight[:, :half], -mixer.output.weight[:, half:])  # C (D, E)
    for row in range(3):
        x = torch.zeros(half, dtype=torch.complex128)
        for t in range(9):
            x = torch.zeros_like(x) if is_first[row, t] else x
            x = a * x + (1 - a.abs().square()).sqrt() * (into @ u[row, t].to(x.dtype))
            torch.testing.assert_close(states[row, t], x, **EXACT)
            torch.testing.assert_close(output[row, t], (out @ x).real, **EXACT)


@pytest.mark.parametrize(("firsts", "used"), [(((0, 0),), "fft"), ((), "fft"), (((2, 6),), "scan")])
def test_the_fft_is_taken_where_no_reset_falls_inside(
    firsts: tuple, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for name, kind in (("_convolve", "fft"), ("linear_recurrence", "scan")):
        real = getattr(ssm, name)

        def counted(*args: object, real=real, kind: str = kind, **kwargs: object) -> Tensor:
            called.append(kind)
            return real(*args, **kwargs)

        monkeypatch.setattr(ssm, name, counted)
    mixer = SSMMixer(load_small("Models.WorldModel.SSMScan=fft").Models).double()
    mixer(*make_inputs(firsts))
    assert called == [used]


def test_the_fft_in_float32_is_exact_over_long_sequences() -> None:
    """Also in the gradient: at 2,048 steps it is within 1e-5 of a scan in float64."""
    torch.manual_seed(0)
    models = load_small("Models.WorldModel.SSMScan=fft", "Models.Hidden=16").Models
    mixer = SSMMixer(models)
    reference = SSMMixer(models).double()
    reference.load_state_dict(mixer.state_dict())
    reference.scan = "odd_even"
    u, is_first = torch.randn(2, 2048, 16), torch.zeros(2, 2048, dtype=torch.bool)
    results = []
    for model, inputs in ((mixer, u), (reference, u.double())):
        output, _ = model(inputs, is_first)
        output.square().mean().backward()
        results.append([output, *(p.grad for p in model.parameters())])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_transitions_start_on_the_disc_and_stay_stable() -> None:
    torch.manual_seed(0)
    models = load_config("config_files/atari.yaml", overrides=["Models.Hidden=4096"]).Models
    mixer = SSMMixer(models)
    modulus = mixer.transition().exp().abs()
    assert modulus.max() < ssm.LARGEST + 1e-6
    shares = [(modulus < radius).float().mean().item() for radius in (0.25, 0.5, 0.75)]
    assert shares == pytest.approx([0.0625, 0.25, 0.5625], abs=0.025)  # by area
    mixer.rate.data.fill_(-30.0)  # whatever training does to it
    assert mixer.transition().exp().abs().max() <= 1


def test_the_fft_is_refused_before_a_run_whose_steps_are_recorded() -> None:
    refuse_capture("fft", captured=False)
    refuse_capture("odd_even", captured=True)
    with pytest.raises(UserError, match=r"SSMScan=odd_even or BasicSettings.Compile=off"):
        refuse_capture("fft", captured=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_fft_refuses_to_be_recorded_as_a_cuda_graph() -> None:
    mixer = SSMMixer(load_small("Models.WorldModel.SSMScan=fft").Models).cuda()
    u, is_first = torch.zeros(2, 4, WIDTH).cuda(), torch.zeros(2, 4, dtype=torch.bool).cuda()
    mixer(u, is_first)
    with pytest.raises(UserError, match="CUDA graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        mixer(u, is_first)


def test_dropout_reaches_the_mixer_and_the_gated_unit() -> None:
    models = load_small("Models.WorldModel.Dropout=0.25").Models
    block = mixer_blocks.MixerBlock(models, GRUMixer(models))
    assert [m.p for m in block.modules() if type(m) is nn.Dropout] == [0.25, 0.25]
