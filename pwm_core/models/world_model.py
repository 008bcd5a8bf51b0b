"""The world model (PWM): encoder, posterior, sequence model, prior, decoder and heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwm_core.config import Models
from pwm_core.models.distributions import (
    Policy,
    SymlogTwoHot,
    categorical_entropy,
    categorical_kl,
    free_bits,
    log_probs,
    one_hot,
    sample_index,
    straight_through_sample,
    unimix_probs,
)
from pwm_core.models.fused_norm import fuse_norms
from pwm_core.models.losses import check_shape, weighted_sum
from pwm_core.models.networks import (
    NORM_EPS,
    VECTOR_NORMS,
    BatchNorm1d,
    Codec,
    GatedUnit,
    head,
)
from pwm_core.models.sequence_models import make_sequence_model
from pwm_core.models.types import Batch, Context, Metrics


def gated_prior(models: Models) -> nn.Sequential:
    """A gated unit, a linear layer and BatchNorm: (N, D) -> logits (N, S*K)."""
    config, width, latent_width = models.WorldModel, models.Hidden, models.Stoch * models.Discrete
    return nn.Sequential(
        GatedUnit(width, config.BlockAct, config.PriorDropout),
        nn.Linear(width, latent_width),
        BatchNorm1d(latent_width, eps=NORM_EPS),
    )


def linear_prior(models: Models) -> nn.Sequential:
    """A linear layer, the prior of STORM: (N, D) -> logits (N, S*K)."""
    return nn.Sequential(nn.Linear(models.Hidden, models.Stoch * models.Discrete))


PRIORS: dict[str, Callable[[Models], nn.Sequential]] = {
    "gated": gated_prior,
    "linear": linear_prior,
}
"""The keys are the values of ``Models.WorldModel.Prior``."""


@torch.no_grad()
def _scale_output(layer: nn.Module, gain: float) -> None:
    """Multiply the initial weight and bias of a linear layer or a normalisation by ``gain``."""
    for parameter in layer.parameters():
        parameter.mul_(gain)


class WorldModel(nn.Module):
    """PWM (PaMoRL, section 3.1).

    Args:
        models: sizes and loss scales.
        codec: encoder, decoder and reconstruction loss of the domain's observations.
        policy: encodes the actions.
    """

    def __init__(self, models: Models, codec: Codec, policy: Policy) -> None:
        super().__init__()
        config, width, layers = models.WorldModel, models.Hidden, models.Agent.Layers
        self.config, self.codec, self.policy = config, codec, policy
        self.stoch, self.classes, self.width = models.Stoch, models.Discrete, width
        latent_width = models.Stoch * models.Discrete
        self.encoder, self.decoder = codec.encoder, codec.decoder
        self.standardise = codec.standardise
        self.posterior = nn.Sequential(
            nn.Linear(codec.features, latent_width, bias=config.PosteriorBias)
        )
        if config.PosteriorNorm:
            norm = "layer" if config.PosteriorNorm == "layer" else "batch"
            self.posterior.append(VECTOR_NORMS[norm](latent_width, eps=NORM_EPS))
        self.sequence = make_sequence_model(models, policy.num_actions)
        self.prior = PRIORS[config.Prior](models)
        for logits in (self.posterior, self.prior):
            _scale_output(logits[-1], config.LatentGain)
        shape = (width, width, layers, models.Act)
        self.reward_head = head(*shape, models.NumBin, zero=models.ZeroHeads)
        self.done_head = head(*shape, 1, zero=models.ZeroHeads)
        self.two_hot = SymlogTwoHot(models.NumBin, models.MaxBin)
        fuse_norms(self, config.Kernels)
        self.loss_weights = {
            "recon": 1.0,
            "reward": 1.0,
            "done": 1.0,
            "dyn": config.DynScale,
            "rep": config.RepScale,
        }

    def _probs(self, logits: Tensor) -> Tensor:
        """Logits (N, S*K) -> probabilities (N, S, K) float32, mixed with a uniform."""
        return unimix_probs(logits.view(-1, self.stoch, self.classes), self.config.Unimix)

    def encode(self, prepared: Tensor) -> Tensor:
        """Prepared observations (N, ...) -> the posterior's probabilities (N, S, K)."""
        return self._probs(self.posterior(self.encoder(prepared)))

    def predict_latent(self, deter: Tensor) -> Tensor:
        """The prior ``p(z_{t+1} | deter_t)``: (N, D) -> probabilities (N, S, K)."""
        return self._probs(self.config.PriorGain * self.prior(deter))

    def decode(self, latent: Tensor) -> Tensor:
        """Class indices (N, S) int64 -> decoded observations (N, ...)."""
        return self.decoder(one_hot(latent, self.classes).flatten(1))

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The training objective (PaMoRL, equation 7), a scalar, and its terms as metrics.

        To add a term: compute it here, give it a weight in ``loss_weights`` (a config key), and
        name it in ``docs/metrics.md``.
        """
        size, length = batch.is_first.shape
        prepared = self.codec.prepare(batch.obs.flatten(0, 1))
        post = self.encode(prepared)  # (B*T, S, K)
        latent = straight_through_sample(post).flatten(1)  # (B*T, S*K)
        recon_loss = self.codec.loss(self.decoder(latent), prepared)  # (B*T,)
        deter, _ = self.sequence(
            latent.view(size, length, -1), self.policy.encode(batch.action), batch.is_first
        )
        deter = deter.flatten(0, 1)  # (B*T, D)
        prior = self.predict_latent(deter)  # (B*T, S, K)
        reward_loss = self.two_hot.loss(self.reward_head(deter), batch.reward.flatten())  # (B*T,)
        done_logit = self.done_head(deter).squeeze(-1).float()  # (B*T,)
        done_loss = F.binary_cross_entropy_with_logits(done_logit, batch.done.flatten().float())
        dyn_loss, rep_loss, real_kl = self._kl_losses(
            log_probs(post).view(size, length, self.stoch, -1),
            log_probs(prior).view(size, length, self.stoch, -1),
            batch.is_first,
        )
        losses = {
            "recon": check_shape("recon", recon_loss, (size * length,)).mean(),
            "reward": check_shape("reward", reward_loss, (size * length,)).mean(),
            "done": done_loss,
            "dyn": dyn_loss,
            "rep": rep_loss,
        }
        total = weighted_sum(losses, self.loss_weights)
        metrics = {f"{name}_loss": value for name, value in losses.items()} | {
            "real_kl": real_kl,
            "vae_ent": categorical_entropy(log_probs(post.detach())).sum(-1).mean(),
            "total_loss": total,
            "clipped_rewards": self.two_hot.count_clipped(batch.reward),
        }
        return total, {name: value.detach() for name, value in metrics.items()}

    def _kl_losses(
        self, post: Tensor, prior: Tensor, is_first: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Dynamics loss, representation loss and the KL without free bits, three scalars.

        They are means over the pairs of steps (t, t+1) that lie in one episode.

        Args:
            post, prior: (B, T, S, K) log-probabilities.
            is_first: (B, T) bool.
        """
        post, prior = post[:, 1:], prior[:, :-1]
        inside = (~is_first[:, 1:]).float()  # (B, T-1); 0 where step t+1 begins an episode
        count = inside.sum().clamp_min(1)

        def mean(kl: Tensor) -> Tensor:
            return (kl.sum(-1) * inside).sum() / count

        dyn = mean(categorical_kl(post.detach(), prior))
        rep = mean(categorical_kl(post, prior.detach()))
        return free_bits(dyn, self.config.KLFree), free_bits(rep, self.config.KLFree), dyn

    @torch.no_grad()
    def context(self, batch: Batch, starts: int) -> Context:
        """The states before the last ``starts`` steps of each sequence, to imagine from.

        The first step of a sequence has no state before it, so there are at most T-1 of them in a
        sequence. Call it in eval mode.
        """
        size, length = batch.is_first.shape
        starts = min(starts, length - 1)
        post = self.encode(self.codec.prepare(batch.obs.flatten(0, 1)))
        latent = sample_index(post).view(size, length, -1)
        action = self.policy.encode(batch.action)
        deter, history = self.sequence(
            latent[:, :-1], action[:, :-1], batch.is_first[:, :-1], return_history=True
        )
        begins = batch.is_first[:, length - starts :].flatten()  # (N,)
        steps = slice(length - 1 - starts, length - 1)
        deter = deter[:, steps].flatten(0, 1).masked_fill(begins.unsqueeze(-1), 0.0)
        return Context(latent[:, length - starts :].flatten(0, 1), deter, begins, steps, history)

    @torch.no_grad()
    def predicted_context(self, batch: Batch) -> Context:
        """The states after the last step of each sequence, to imagine from as STORM does.

        The latent is one that the prior predicts. Call it in eval mode.

        Args:
            batch: N sequences, each followed by a step of the same episode.
        """
        size, length = batch.is_first.shape
        post = self.encode(self.codec.prepare(batch.obs.flatten(0, 1)))
        latent = sample_index(post).view(size, length, -1)
        deter, history = self.sequence(
            latent, self.policy.encode(batch.action), batch.is_first, return_history=True
        )
        deter = deter[:, -1]  # (N, D)
        predicted = sample_index(self.predict_latent(deter))
        begins = torch.zeros_like(batch.is_first[:, -1])
        return Context(predicted, deter, begins, slice(length - 1, length), history)

    def predict(self, deter: Tensor) -> tuple[Tensor, Tensor]:
        """``deter`` (..., D) -> reward (...) float32, and (...) bool: the episode continues."""
        reward = self.two_hot.decode(self.reward_head(deter))
        return reward, self.done_head(deter).squeeze(-1) < 0
