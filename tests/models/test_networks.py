"""Layers and codecs against torch's own layers and explicit formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwm_core.models import networks
from pwm_core.models.networks import BatchNorm1d, ImageCodec, LatentLinear, LayerNorm2d, sum_rows
from pwm_dmc.world_model import VectorCodec
from tests.helpers import (
    CLASSES,
    STOCH,
    as_vector,
    disturb,
    load_small,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def assert_same(found: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    """Check that two results from the same ``leaves`` have equal values and gradients."""
    torch.testing.assert_close(found, expected, **CLOSE)
    weights = torch.randn_like(expected)
    for leaf in leaves:
        one, other = (
            torch.autograd.grad((x * weights).sum(), leaf, retain_graph=True)[0]
            for x in (found, expected)
        )
        torch.testing.assert_close(one, other, **CLOSE)
        assert other.any()


GPU = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_rows_picked_by_indices_are_a_product_with_one_hot_vectors(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "BAGS", 8)  # so that (2, 3, 5) takes several groups
    torch.manual_seed(0)
    layer = LatentLinear(4, STOCH, CLASSES, 8).to(device)
    table = torch.randn(STOCH * CLASSES, 8, device=device, requires_grad=True)
    for shape in ((7,), (4, 3), (2, 3, 5)):
        x = torch.randn(*shape, 4, device=device, requires_grad=True)
        latent = torch.randint(CLASSES, (*shape, STOCH), device=device)
        vector = as_vector(latent).requires_grad_()
        expected = torch.cat([x, vector], dim=-1) @ layer.weight
        assert_same(layer(x, latent), expected, x, layer.weight)
        assert_same(layer(x, vector), expected, x, vector, layer.weight)
        index = latent + CLASSES * torch.arange(STOCH, device=device)
        assert_same(sum_rows(table, index), vector @ table, table)


def test_picking_rows_compiles_to_one_graph() -> None:
    table = torch.randn(STOCH * CLASSES, 8, requires_grad=True)
    index = torch.randint(CLASSES, (5, STOCH)) + CLASSES * torch.arange(STOCH)
    compiled = torch.compile(sum_rows, fullgraph=True, backend="aot_eager")
    assert_same(compiled(table, index), sum_rows(table, index), table)


def test_a_latent_layer_starts_as_torchs_linear() -> None:
    torch.manual_seed(0)
    layer, linear = LatentLinear(40, 10, 6, 200), nn.Linear(100, 200, bias=False)
    assert layer.weight.shape == linear.weight.T.shape
    for weight in (layer.weight, linear.weight):
        assert weight.abs().max().item() == pytest.approx(0.1, rel=1e-3)
        assert weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert set(layer.state_dict()) == {"weight"}


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_torchs(training: bool) -> None:
    torch.manual_seed(0)
    sizes = {"num_features": 8, "eps": 1e-3, "momentum": 0.3}
    ours, torchs = BatchNorm1d(**sizes), nn.BatchNorm1d(**sizes)
    disturb(ours)
    torchs.load_state_dict(ours.state_dict())
    torchs.weight, torchs.bias = ours.weight, ours.bias
    x = (3 * torch.randn(20, 8) + torch.arange(8)).requires_grad_()
    found, expected = (norm.train(training)(x) for norm in (ours, torchs))
    assert_same(found, expected, x, ours.weight, ours.bias)
    for one, other in zip(ours.buffers(), torchs.buffers(), strict=True):
        torch.testing.assert_close(one, other)  # moved on in training only
    assert (ours.num_batches_tracked == 1) == training


def test_batch_norm_computes_bfloat16_in_float32_in_eval_mode() -> None:
    norm = BatchNorm1d(8).eval()
    disturb(norm)
    x = torch.randn(20, 8).bfloat16()
    assert norm(x).dtype == torch.float32
    torch.testing.assert_close(norm(x), norm(x.float()), rtol=0, atol=0)


def test_the_image_loss_ignores_pixels_that_agree_at_8_bits() -> None:
    codec = ImageCodec(load_small().Models, (16, 16, 3))
    torch.manual_seed(0)
    prepared = codec.prepare(torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8))
    decoded = (prepared + torch.randn_like(prepared) / 255).clamp(0, 1).requires_grad_()
    differ = (decoded * 255).round() != (prepared * 255).round()
    assert 0.3 < differ.float().mean() < 0.8
    loss = codec.loss(decoded, prepared)
    error = torch.where(differ, decoded - prepared, 0.0)
    torch.testing.assert_close(loss, 0.5 * error.square().sum((1, 2, 3)))
    (gradient,) = torch.autograd.grad(loss.sum(), decoded)
    assert (gradient[~differ] == 0).all()
    assert (gradient[differ] != 0).all()
    vector, other = torch.randn(2, 5, 4)
    codec = VectorCodec(load_small().Models, 4)
    torch.testing.assert_close(codec.loss(vector, other), 0.5 * (vector - other).square().sum(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_image_loss_equals_its_plain_form(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    codec = ImageCodec(load_small().Models, (16, 16, 3))
    prepared = codec.prepare(torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8))
    decoded = (prepared + torch.randn_like(prepared) / 255).to(dtype).requires_grad_()
    loss = codec.loss(decoded, prepared)
    plain = 0.5 * F.hardshrink(decoded.float() - prepared, 0.5 / 255).square().sum((1, 2, 3))
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    weight = torch.randn(5)
    (gradient,) = torch.autograd.grad((loss * weight).sum(), decoded)
    (expected,) = torch.autograd.grad((plain * weight).sum(), decoded)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)


def test_the_image_loss_of_a_nan_is_nan() -> None:
    codec = ImageCodec(load_small().Models, (16, 16, 3))
    prepared = codec.prepare(torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    decoded = prepared.clone()
    decoded[1, 0, 3, 3] = float("nan")
    assert codec.loss(decoded, prepared).isnan().tolist() == [False, True]


def test_images_are_scaled_to_one_and_back() -> None:
    codec = ImageCodec(load_small().Models, (16, 16, 3))
    obs = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    prepared = codec.prepare(obs)
    torch.testing.assert_close(prepared, obs.permute(0, 3, 1, 2) / 255)
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(codec.frames(prepared), obs)


@torch.no_grad()
def test_layer_norm_of_an_image_is_over_the_channels_of_a_position() -> None:
    norm = LayerNorm2d(6, eps=1e-5)
    disturb(norm)
    x = torch.randn(2, 6, 4, 4)
    found = norm(x.to(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    scale, shift = (p.view(1, 6, 1, 1) for p in (norm.weight, norm.bias))
    torch.testing.assert_close(found, (x - mean) / (variance + 1e-5).sqrt() * scale + shift)


@pytest.mark.parametrize(
    ("name", "image", "vector"),
    [
        ("auto", nn.BatchNorm2d, nn.LayerNorm),
        ("batch", nn.BatchNorm2d, BatchNorm1d),
        ("layer", LayerNorm2d, nn.LayerNorm),
        ("none", None, None),
    ],
)
def test_every_layer_of_a_codec_is_normalised_as_configured(
    name: str, image: type | None, vector: type | None
) -> None:
    """Layers that a normalisation follows have no bias, and others have one."""
    models = load_small(f"Models.WorldModel.CodecNorm={name}").Models
    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.BatchNorm1d)
    for codec, kind in ((ImageCodec(models, (16, 16, 3)), image), (VectorCodec(models, 5), vector)):
        for part, unnormalised in ((codec.encoder, 0), (codec.decoder, 1)):
            layers = [m for m in part if hasattr(m, "weight") and not isinstance(m, norms)]
            found = [type(m) for m in part if isinstance(m, norms)]
            assert found == [kind] * (len(layers) - unnormalised) if kind else found == []
            has_bias = [layer.bias is not None for layer in layers]
            normalised = len(layers) - unnormalised
            assert has_bias == [kind is None] * normalised + [True] * unnormalised
