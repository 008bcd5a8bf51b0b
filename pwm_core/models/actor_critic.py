"""Actor and critic, trained on imagined rollouts (PaMoRL, section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pwm_core.config import Models
from pwm_core.models.distributions import Policy, SymlogTwoHot
from pwm_core.models.fused_norm import fuse_norms
from pwm_core.models.losses import check_shape, weighted_sum
from pwm_core.models.networks import latent_head
from pwm_core.models.returns import lambda_return, pete_return, step_weights
from pwm_core.models.types import Metrics, Trajectory

CRITICS = ("critic.", "slow_critic.")
"""What the names of the critics' weights begin with."""


class ReturnScale(nn.Module):
    """``max(1, P_high - P_low)`` of the returns.

    The two percentiles are moving averages that start at 0.

    Args:
        low, high: the percentiles, in [0, 1].
        decay: of the moving averages.
        percentile: how a percentile is read, a value of ``Models.Agent.Percentile``.
    """

    def __init__(
        self, low: float, high: float, decay: float, percentile: str = "interpolated"
    ) -> None:
        super().__init__()
        self.decay, self._exact_levels = decay, (low, high)
        self._read = {"interpolated": self._interpolated, "kth": self._kth}[percentile]
        self.register_buffer("levels", torch.tensor([low, high]), persistent=False)
        self.register_buffer("percentiles", torch.zeros(2))

    def forward(self, returns: Tensor) -> Tensor:
        """The scale, a float32 scalar, after updating the percentiles with ``returns`` (...)."""
        current = self._read(returns.detach().float().flatten())
        self.percentiles.lerp_(current, 1 - self.decay)
        return (self.percentiles[1] - self.percentiles[0]).clamp_min(1.0)

    def _interpolated(self, returns: Tensor) -> Tensor:
        """The percentiles (2,) of ``returns`` (n,), interpolated between the nearest returns."""
        return torch.quantile(returns, self.levels)

    def _kth(self, returns: Tensor) -> Tensor:
        """The returns (2,) at the positions ``int(level * n)`` of the n sorted ``returns``."""
        ordered, last = returns.sort().values, len(returns) - 1
        places = (min(int(level * len(returns)), last) for level in self._exact_levels)
        return torch.stack([ordered[place] for place in places])


STEP_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "discount": step_weights,
    "one": torch.ones_like,
}
"""Discounts (N, H) -> weights (N, H). The keys are the values of ``Models.Agent.StepWeight``."""


def clipped_objective(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """``min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A)`` (PPO, equation 7).

    ``ratio`` is the probability of an action divided by its probability under the policy that
    acted. At a ratio of 1 the gradient is that of REINFORCE. Once the advantage has pushed the
    ratio past the clip, the gradient is 0. Repeated updates on one batch therefore stay near the
    policy that acted.

    Args:
        ratio, advantage: float32 tensors of one shape, which is also that of the result.
        clip: largest distance of the ratio from 1.
    """
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


class ActorCritic(nn.Module):
    """Policy and value of a state (deter, latent).

    Args:
        models: sizes and objectives.
        policy: the domain's distribution of actions.
    """

    def __init__(self, models: Models, policy: Policy) -> None:
        super().__init__()
        self.config, self.policy = models.Agent, policy
        self.lambda_, self.tau = models.Lambda, models.Tau
        self.actor = latent_head(models, policy.output_width)
        self.critic = latent_head(models, models.NumBin)
        for network in (self.actor, self.critic):
            fuse_norms(network, models.WorldModel.Kernels)
        self.slow_critic: nn.Module | None = None
        if models.Agent.SlowCritic:
            self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.two_hot = SymlogTwoHot(models.NumBin, models.MaxBin)
        agent = models.Agent
        self.return_scale = ReturnScale(
            agent.MinPer, agent.MaxPer, agent.EMADecay, agent.Percentile
        )
        self._step_weights = STEP_WEIGHTS[models.Agent.StepWeight]
        self.loss_weights = {"policy": 1.0, "value": 1.0, "entropy": models.Agent.EntropyCoef}

    def act(self, deter: Tensor, latent: Tensor, *, greedy: bool = False) -> Tensor:
        """(N, D) and (N, S) -> actions as executed and stored: (N,) int64, or (N, A) clipped."""
        output = self.actor(deter, latent)
        return self._executed(self.policy.mode(output) if greedy else self.policy.sample(output))

    def act_at_random(self, count: int, device: torch.device) -> Tensor:
        """``count`` actions as :meth:`act` returns them, of a policy whose output is zeros.

        Discrete ones are uniform.
        """
        zeros = torch.zeros(count, self.policy.output_width, device=device)
        return self._executed(self.policy.sample(zeros))

    def _executed(self, action: Tensor) -> Tensor:
        return action if self.policy.discrete else self.policy.encode(action)

    def _returns(
        self, trajectory: Trajectory, value: Tensor, log_prob: Tensor | None = None
    ) -> Tensor:
        """Return targets (N, H) from ``value`` (N, H+1), computed by the configured estimator."""
        reward, discount = trajectory.reward, trajectory.discount
        scan = self.config.ReturnScan
        if self.config.Returns == "lambda":
            return lambda_return(reward, discount, value, self.lambda_, scan=scan)
        ratio = None
        if log_prob is not None:  # the ratio is 1 at the first update on a rollout
            ratio = (log_prob.detach() - trajectory.log_prob).exp()
        return pete_return(reward, discount, value, self.lambda_, ratio, scan=scan)

    def loss(self, trajectory: Trajectory, *, again: bool = False) -> tuple[Tensor, Metrics]:
        """Policy and value loss on imagined rollouts; also updates the return scale.

        The policy loss is REINFORCE on the scaled advantage, with an entropy bonus. The value loss
        is the two-hot cross-entropy with the returns. With a slow critic, the cross-entropy with
        the returns bootstrapped from it is added. Every step has the weight that
        ``Models.Agent.StepWeight`` names.

        To add a term: compute it here, give it a weight in ``loss_weights`` (a config key), and
        name it in ``docs/metrics.md``.

        Args:
            trajectory: N rollouts of H steps.
            again: the policy has already been updated on this trajectory. It then differs from the
                policy that acted, and its loss is :func:`clipped_objective`.

        Returns:
            the weighted sum of the terms, a scalar, and the metrics.
        """
        policy = self.policy
        weight = self._step_weights(trajectory.discount)  # (N, H)
        logits = self.critic(trajectory.deter, trajectory.latent)  # (N, H+1, C)
        value = self.two_hot.decode(logits.detach())  # (N, H+1)
        output = self.actor(trajectory.deter[:, :-1], trajectory.latent[:, :-1])
        log_prob = policy.log_prob(output, trajectory.action)  # (N, H)
        entropy = policy.entropy(output)  # (N, H)

        returns = self._returns(trajectory, value, log_prob)
        critic_error = self._critic_error(trajectory, logits, returns, log_prob)
        scale = self.return_scale(returns)
        advantage = (returns - value[:, :-1]) / scale
        if again:
            ratio = (log_prob - trajectory.log_prob).exp()
            objective = weight * clipped_objective(ratio, advantage, self.config.ClipRatio)
        else:
            objective = weight * log_prob * advantage

        shape = trajectory.reward.shape  # (N, H)
        losses = {
            "policy": -check_shape("policy", objective, shape).mean(),
            "value": check_shape("value", weight * critic_error, shape).mean(),
            "entropy": -check_shape("entropy", weight * entropy, shape).mean(),
        }
        total = weighted_sum(losses, self.loss_weights)
        return total, {
            "policy_loss": losses["policy"].detach(),
            "value_loss": losses["value"].detach(),
            "entropy": entropy.detach().mean(),
            "action_information": policy.mixed_entropy(output.detach()) - entropy.detach().mean(),
            "scale": scale,
            "lambda_return": returns.mean(),
            "norm_adv": advantage.mean(),
            "imagined_reward": trajectory.reward.mean(),
            "clipped_returns": self.two_hot.count_clipped(returns),
        }

    def _critic_error(
        self, trajectory: Trajectory, logits: Tensor, returns: Tensor, log_prob: Tensor
    ) -> Tensor:
        """Cross-entropy (N, H) of the critic's ``logits`` (N, H+1, C) with its return targets."""
        error = self.two_hot.loss(logits[:, :-1], returns)
        if self.slow_critic is not None:
            slow_returns = self._returns(trajectory, self._slow_value(trajectory), log_prob)
            error = error + self.two_hot.loss(logits[:, :-1], slow_returns)
        return error

    @torch.no_grad()
    def _slow_value(self, trajectory: Trajectory) -> Tensor:
        """The slow critic's values: (N, H+1)."""
        return self.two_hot.decode(self.slow_critic(trajectory.deter, trajectory.latent))

    @torch.no_grad()
    def update_slow_critic(self) -> None:
        """Move the slow critic towards the critic by the fraction ``Tau``."""
        if self.slow_critic is None:
            return
        slow = list(self.slow_critic.parameters())
        torch._foreach_lerp_(slow, list(self.critic.parameters()), self.tau)
