"""Encodings and distributions against explicit formulas and torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from pwm_atari.actor_critic import CategoricalPolicy
from pwm_core.models.distributions import (
    SymlogTwoHot,
    categorical_entropy,
    categorical_kl,
    exponential_race,
    free_bits,
    log_probs,
    one_hot,
    sample_index,
    straight_through_sample,
    symexp,
    symlog,
    unimix_probs,
)
from pwm_dmc.actor_critic import GaussianPolicy
from tests.helpers import two_hot_weights

BINS, TOP = 255, 20.0
TWO_HOT = SymlogTwoHot(BINS, TOP)
VALUES = torch.tensor([0.0, 1.0, -1.0, 0.3, 37.5, -1e4, 2e6])
LARGEST = math.expm1(TOP)  # 4.85e8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_symlog_and_symexp_are_inverse_and_odd() -> None:
    x = torch.cat([VALUES, torch.tensor([1e-6, -1e-6])])
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-5, atol=0)
    torch.testing.assert_close(symlog(-x), -symlog(x))
    torch.testing.assert_close(symlog(torch.tensor(math.e - 1)), torch.tensor(1.0))


def test_two_hot_decodes_the_weights_of_the_two_nearest_bins() -> None:
    logits = two_hot_weights(TWO_HOT, VALUES).log()
    torch.testing.assert_close(TWO_HOT.decode(logits), VALUES, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1.5, 1e6, math.inf])
@pytest.mark.parametrize(("sign", "end"), [(1, BINS - 1), (-1, 0)])
def test_two_hot_clips_to_its_ends(sign: int, end: int, factor: float) -> None:
    value, logits = torch.tensor(sign * LARGEST * factor), torch.randn(BINS)
    torch.testing.assert_close(TWO_HOT.loss(logits, value), -logits.log_softmax(-1)[end])
    decoded = TWO_HOT.decode(F.one_hot(torch.tensor(end), BINS).float().log())
    torch.testing.assert_close(decoded, torch.tensor(sign * LARGEST), rtol=1e-3, atol=0)


def test_two_hot_loss_is_the_cross_entropy_with_the_encoding() -> None:
    value = torch.cat([VALUES, torch.tensor([LARGEST, -LARGEST]), symexp(TWO_HOT.bins)])
    logits = (5 * torch.randn(len(value), BINS)).requires_grad_()
    explicit = -(two_hot_weights(TWO_HOT, value) * logits.log_softmax(-1)).sum(-1)
    loss = TWO_HOT.loss(logits, value)
    torch.testing.assert_close(loss, explicit, rtol=1e-4, atol=1e-4)
    pairs = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (loss, explicit)]
    torch.testing.assert_close(*pairs, rtol=1e-4, atol=1e-4)


def test_two_hot_decodes_the_mean_in_symlog_space() -> None:
    logits = torch.randn(4, BINS)
    mean = (logits.softmax(-1) * torch.linspace(-TOP, TOP, BINS)).sum(-1)
    torch.testing.assert_close(TWO_HOT.decode(logits), symexp(mean))
    torch.testing.assert_close(TWO_HOT.decode(torch.zeros(BINS)), torch.tensor(0.0))


def test_two_hot_decodes_in_float32_under_autocast() -> None:
    logits = two_hot_weights(TWO_HOT, VALUES).log()
    with torch.autocast("cpu", torch.bfloat16):
        decoded = TWO_HOT.decode(logits)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, TWO_HOT.decode(logits))


def test_unimix_is_the_mixture_and_no_class_falls_below_its_share() -> None:
    logits = 30 * torch.randn(64, 32)
    found = unimix_probs(logits, 0.01)
    torch.testing.assert_close(found, 0.99 * logits.softmax(-1) + 0.01 / 32)
    assert found.min() >= 0.01 / 32 * (1 - 1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones(64))
    torch.testing.assert_close(unimix_probs(logits, 0.0), logits.softmax(-1))
    assert unimix_probs(logits.bfloat16(), 0.01).dtype == torch.float32


def test_log_probs_are_the_logarithm() -> None:
    probs = unimix_probs(5 * torch.randn(64, 32), 0.01)
    torch.testing.assert_close(log_probs(probs), probs.log())
    logits = torch.randn(64, 32)
    torch.testing.assert_close(log_probs(unimix_probs(logits, 0.0)), logits.log_softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_unimix_log_probs_kl_and_entropy_stay_finite(dtype: torch.dtype) -> None:
    """Where a probability underflows, the values and the gradients."""
    logits = torch.tensor([[0.0, 1e4, -1e4], [0.0, 100.0, 5.0], [0.0, 87.5, 0.5], [1.0, 2.0, 3.0]])
    logits = torch.stack([logits, logits.roll(1, -1)]).to(dtype).requires_grad_()
    p, q = log_probs(logits.softmax(-1))
    assert (logits.softmax(-1) == 0).any()
    kl, entropy = categorical_kl(p, q), categorical_entropy(p)
    (gradient,) = torch.autograd.grad((kl + entropy).sum(), logits)
    for value in (p, q, kl, entropy, gradient):
        assert value.dtype == dtype
        assert torch.isfinite(value).all()
    assert (kl[:3] > 50).all()
    assert (entropy[:3] < 1e-5).all()
    reference = [Categorical(logits=x[3]) for x in logits]
    torch.testing.assert_close(kl[3], kl_divergence(*reference))


def chi_square(index: Tensor, probs: Tensor) -> float:
    """Pearson's statistic over the possible classes, whose mean is K - 1."""
    counts = torch.bincount(index.flatten(), minlength=len(probs)).double()
    expected = probs.double() / probs.double().sum() * index.numel()
    possible = expected > 0
    assert counts[~possible].sum() == 0, "a class of probability 0 was drawn"
    return ((counts - expected).square() / expected)[possible].sum().item()


@pytest.mark.parametrize(
    "probs",
    [
        [0.25, 0.25, 0.25, 0.25],
        [0.0, 0.1, 0.0, 0.6, 0.3, 0.0],
        [1.0, 0.0],
        [0.0, 1.0],
        [0.001, 0.499, 0.5],
        [2.0, 1.0, 1.0],  # need not be normalised
    ],
)
def test_sample_index_draws_by_probability(probs: list[float]) -> None:
    row = torch.tensor(probs)
    index = sample_index(row.expand(200, 200, -1))
    assert (index.shape, index.dtype) == ((200, 200), torch.int64)
    # 1e-4 of the chi-square distribution with up to 3 degrees of freedom.
    assert chi_square(index, row) < 21.1


def test_sample_index_draws_rows_independently() -> None:
    index = sample_index(torch.tensor([0.5, 0.5]).expand(20_000, 2, 2))
    both = index[:, 0] * 2 + index[:, 1]
    assert chi_square(both, torch.full((4,), 0.25)) < 21.1


def test_one_hot() -> None:
    index = torch.tensor([[0, 2], [1, 1]])
    torch.testing.assert_close(one_hot(index, 3), F.one_hot(index, 3).float())


def test_straight_through_is_a_sample_with_the_gradient_of_the_mixed_probabilities() -> None:
    logits = torch.randn(50, 4, 8, requires_grad=True)
    weight = torch.randn(50, 4, 8)
    sample = straight_through_sample(unimix_probs(logits, 0.01))
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(sample.sum(-1), torch.ones(50, 4))
    (found,) = torch.autograd.grad((sample * weight).sum(), logits, retain_graph=True)
    mixed = 0.99 * logits.softmax(-1) + 0.01 / 8
    (expected,) = torch.autograd.grad((mixed * weight).sum(), logits)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0.01


def test_straight_through_draws_by_probability() -> None:
    probs = torch.tensor([0.1, 0.2, 0.7])
    sample = straight_through_sample(probs.expand(40_000, 3))
    assert chi_square(sample.argmax(-1), probs) < 18.4


def test_kl_and_entropy_of_categoricals() -> None:
    p, q = torch.randn(2, 5, 3, 7).log_softmax(-1)
    expected = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    torch.testing.assert_close(categorical_kl(p, q), expected)
    torch.testing.assert_close(categorical_entropy(p), Categorical(logits=p).entropy())


@pytest.mark.parametrize(
    ("kl", "value", "gradient"), [(0.2, 1.0, 0.0), (1.0, 1.0, 0.0), (1.5, 1.5, 1.0)]
)
def test_free_bits_have_no_gradient_below_the_minimum(
    kl: float, value: float, gradient: float
) -> None:
    x = torch.tensor(kl, requires_grad=True)
    found = free_bits(x, 1.0)
    (slope,) = torch.autograd.grad(found, x)
    assert (found.item(), slope.item()) == (value, gradient)


def test_the_exponential_race_draws_what_the_probabilities_say() -> None:
    """Each share of 100,000 draws within five standard deviations; probability 0 never."""
    torch.manual_seed(0)
    probs = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    drawn = exponential_race(probs.expand(100_000, -1)).bincount(minlength=5) / 100_000
    assert drawn[1] == 0
    assert ((drawn - probs).abs() <= 5 * (probs * (1 - probs) / 100_000).sqrt()).all()


def test_the_categorical_policy_is_torchs() -> None:
    policy, output = CategoricalPolicy(6), 2 * torch.randn(7, 5, 6)
    reference = Categorical(logits=output)
    action = policy.sample(output)
    assert (policy.discrete, policy.output_width) == (True, 6)
    assert (action.shape, action.dtype) == ((7, 5), torch.int64)
    torch.testing.assert_close(policy.log_prob(output, action), reference.log_prob(action))
    torch.testing.assert_close(policy.entropy(output), reference.entropy())
    torch.testing.assert_close(policy.mode(output), reference.probs.argmax(-1))
    torch.testing.assert_close(policy.encode(action), F.one_hot(action, 6).float())
    draws = policy.sample(output[0, 0].expand(40_000, 6))
    assert chi_square(draws, reference.probs[0, 0]) < 25.7  # 1e-4 with 5 degrees of freedom


def test_the_gaussian_policy_is_torchs() -> None:
    policy, output = GaussianPolicy(3, 0.1, 1.0), 2 * torch.randn(7, 5, 6)
    mean, std = output[..., :3].tanh(), 0.1 + 0.9 * (output[..., 3:] + 2).sigmoid()
    reference = Independent(Normal(mean, std), 1)
    action = policy.sample(output)
    assert (policy.discrete, policy.output_width) == (False, 6)
    assert (action.shape, action.dtype) == ((7, 5, 3), torch.float32)
    torch.testing.assert_close(policy.log_prob(output, action), reference.log_prob(action))
    torch.testing.assert_close(policy.entropy(output), reference.entropy())
    torch.testing.assert_close(policy.mode(output), mean)
    draws = policy.sample(output[0, 0].expand(40_000, 6))
    torch.testing.assert_close(draws.mean(0), mean[0, 0], rtol=0, atol=0.02)
    torch.testing.assert_close(draws.std(0), std[0, 0], rtol=0.02, atol=0)
    assert draws.abs().max() > 1  # samples are not clipped, what is executed is


def test_the_mixed_entropy_is_that_of_actions_in_unknown_states() -> None:
    torch.manual_seed(0)
    categorical, output = CategoricalPolicy(6), 2 * torch.randn(7, 5, 6)
    mixture = Categorical(probs=Categorical(logits=output).probs.mean((0, 1)))
    torch.testing.assert_close(categorical.mixed_entropy(output), mixture.entropy())

    gaussian = GaussianPolicy(3, 0.1, 1.0)
    drawn = gaussian.sample(output.expand(40_000, 7, 5, 6)).flatten(0, 2)
    found = Independent(Normal(0.0, drawn.std(0)), 1).entropy()
    torch.testing.assert_close(gaussian.mixed_entropy(output), found, rtol=0, atol=0.01)


def test_an_action_tells_nothing_about_states_that_the_policy_does_not_tell_apart() -> None:
    for policy in (CategoricalPolicy(6), GaussianPolicy(3, 0.1, 1.0)):
        same = torch.randn(6).expand(7, 5, 6)
        torch.testing.assert_close(policy.mixed_entropy(same), policy.entropy(same).mean())
    certain = torch.eye(6) * 200  # in each state another action
    torch.testing.assert_close(CategoricalPolicy(6).mixed_entropy(certain), torch.tensor(6.0).log())


@pytest.mark.parametrize(("raw", "std"), [(-100.0, 0.1), (-2.0, 0.55), (100.0, 1.0)])
def test_the_standard_deviation_stays_in_its_range(raw: float, std: float) -> None:
    output = torch.tensor([[0.0, raw]])
    entropy = Normal(0.0, torch.tensor([std])).entropy()
    torch.testing.assert_close(GaussianPolicy(1, 0.1, 1.0).entropy(output), entropy)


def test_encoding_a_continuous_action_clips_it_to_the_bounds() -> None:
    action = torch.tensor([[-3.0, 0.5], [0.2, 7.0]])
    torch.testing.assert_close(
        GaussianPolicy(2, 0.1, 1.0).encode(action), torch.tensor([[-1.0, 0.5], [0.2, 1.0]])
    )
    low, high = torch.tensor([-2.0, -1.0]), torch.tensor([0.1, 5.0])
    torch.testing.assert_close(
        GaussianPolicy(2, 0.1, 1.0, low, high).encode(action),
        torch.tensor([[-2.0, 0.5], [0.1, 5.0]]),
    )
