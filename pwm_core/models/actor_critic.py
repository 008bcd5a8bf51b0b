"""Actor and critic, trained on imagined rollouts (PaMoRL, section 3.2)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pwm_core.config import Models
from pwm_core.models.distributions import Policy, SymlogTwoHot
from pwm_core.models.losses import check_shape, weighted_sum
from pwm_core.models.networks import latent_head
from pwm_core.models.returns import lambda_return, pete_return, step_weights
from pwm_core.models.types import Metrics, Trajectory


class ReturnScale(nn.Module):
    """``max(1, P_high - P_low)`` of the returns, the percentiles as moving averages from 0."""

    def __init__(self, low: float, high: float, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("levels", torch.tensor([low, high]), persistent=False)
        self.register_buffer("percentiles", torch.zeros(2))

    def forward(self, returns: Tensor) -> Tensor:
        """Take in ``returns`` (any shape) and give the scale, a float32 scalar tensor."""
        current = torch.quantile(returns.detach().float().flatten(), self.levels)
        self.percentiles.lerp_(current, 1 - self.decay)
        return (self.percentiles[1] - self.percentiles[0]).clamp_min(1.0)


def clipped_objective(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """``min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A)`` (PPO, equation 7).

    ``ratio`` is the probability of an action over that under the policy that acted. At 1 the
    gradient is REINFORCE's; beyond the clip, on the side that the advantage pushes to, it is 0, so
    that updates on one and the same batch do not run away from the policy that acted. All three of
    one shape, float32.
    """
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


class ActorCritic(nn.Module):
    """Policy and value over features (deter, latent).

    Args:
        models: sizes and objectives.
        policy: the distribution of actions, the domain's choice.
    """

    def __init__(self, models: Models, policy: Policy) -> None:
        super().__init__()
        self.config, self.policy = models.Agent, policy
        self.lambda_, self.tau = models.Lambda, models.Tau
        self.actor = latent_head(models, policy.output_width)
        self.critic = latent_head(models, models.NumBin)
        self.slow_critic: nn.Module | None = None
        if models.Agent.SlowCritic:
            self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.two_hot = SymlogTwoHot(models.NumBin, models.MaxBin)
        self.return_scale = ReturnScale(
            models.Agent.MinPer, models.Agent.MaxPer, models.Agent.EMADecay
        )
        self.loss_weights = {"policy": 1.0, "value": 1.0, "entropy": models.Agent.EntropyCoef}

    def act(self, deter: Tensor, latent: Tensor, *, greedy: bool = False) -> Tensor:
        """(N, D), (N, S) -> actions as executed and stored: (N,) int64 or (N, A) clipped."""
        output = self.actor(deter, latent)
        action = self.policy.mode(output) if greedy else self.policy.sample(output)
        return action if self.policy.discrete else self.policy.encode(action)

    def _returns(
        self, trajectory: Trajectory, value: Tensor, log_prob: Tensor | None = None
    ) -> Tensor:
        """Return targets (N, H) from ``value`` (N, H+1), by the configured estimator."""
        reward, discount = trajectory.reward, trajectory.discount
        scan = self.config.ReturnScan
        if self.config.Returns == "lambda":
            return lambda_return(reward, discount, value, self.lambda_, scan=scan)
        ratio = None
        if log_prob is not None:  # 1 at the first update on a rollout, off-policy after that
            ratio = (log_prob.detach() - trajectory.log_prob).exp()
        return pete_return(reward, discount, value, self.lambda_, ratio, scan=scan)

    def loss(self, trajectory: Trajectory, *, again: bool = False) -> tuple[Tensor, Metrics]:
        """Policy and value loss on imagined rollouts; moves the return scale on.

        Policy: REINFORCE on the scaled advantage with an entropy bonus. Critic: two-hot
        cross-entropy to the returns, and to those bootstrapped from the slow critic where there is
        one. Every step is weighted by the product of the discounts before it.

        Args:
            trajectory: N rollouts of H steps.
            again: the policy has been updated on this trajectory before, so it is no longer the
                one that acted: its loss is the clipped one of :func:`clipped_objective`.
        """
        config, policy = self.config, self.policy
        weight = step_weights(trajectory.discount)  # (N, H)
        logits = self.critic(trajectory.deter, trajectory.latent)  # (N, H+1, C)
        value = self.two_hot.decode(logits.detach())  # (N, H+1)
        output = self.actor(trajectory.deter[:, :-1], trajectory.latent[:, :-1])
        log_prob = policy.log_prob(output, trajectory.action)  # (N, H)
        entropy = policy.entropy(output)  # (N, H)

        returns = self._returns(trajectory, value, log_prob)
        critic_error = self.two_hot.loss(logits[:, :-1], returns)
        if self.slow_critic is not None:
            slow_returns = self._returns(trajectory, self._slow_value(trajectory), log_prob)
            critic_error = critic_error + self.two_hot.loss(logits[:, :-1], slow_returns)
        scale = self.return_scale(returns)
        advantage = (returns - value[:, :-1]) / scale

        if again:
            ratio = (log_prob - trajectory.log_prob).exp()
            objective = weight * clipped_objective(ratio, advantage, config.ClipRatio)
        else:
            objective = weight * log_prob * advantage
        shape = trajectory.reward.shape
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
            "scale": scale,
            "lambda_return": returns.mean(),
            "norm_adv": advantage.mean(),
            "imagined_reward": trajectory.reward.mean(),
            "clipped_returns": self.two_hot.count_clipped(returns),
        }

    @torch.no_grad()
    def _slow_value(self, trajectory: Trajectory) -> Tensor:
        return self.two_hot.decode(self.slow_critic(trajectory.deter, trajectory.latent))

    @torch.no_grad()
    def update_slow_critic(self) -> None:
        """Move the slow critic a share ``Tau`` of the way to the critic."""
        if self.slow_critic is None:
            return
        slow = list(self.slow_critic.parameters())
        torch._foreach_lerp_(slow, list(self.critic.parameters()), self.tau)
