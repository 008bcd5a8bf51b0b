"""The world model: its size, its latents, its losses, and that it learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from pwm_atari.actor_critic import CategoricalPolicy
from pwm_core.config_file import load_config
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.distributions import sample_index
from pwm_core.models.networks import ImageCodec
from pwm_core.models.sequence_models.memory import ImaginedMemory
from pwm_core.models.types import Batch
from pwm_core.models.world_model import WorldModel
from pwm_dmc.actor_critic import GaussianPolicy
from pwm_dmc.world_model import VectorCodec
from tests.helpers import (
    ACTIONS,
    CLASSES,
    STOCH,
    WIDTH,
    Data,
    as_vector,
    count_parameters,
    load_small,
    make_agent,
    make_world_model,
    replace_at,
    two_hot_weights,
)

ATARI = "config_files/atari.yaml"
DMC = (
    "Models.WorldModel.HeadDivisor=8",
    "Models.WorldModel.RMSNorm=false",
    "Models.WorldModel.OutputTanh=true",
    "Models.Agent.SlowCritic=false",
)
FIRSTS = ((0, 0), (0, 4), (1, 3), (1, 4), (2, 6))
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

# ------------------------------------------------------------------------------------------ size

PARTS = ("encoder", "decoder", "blocks", "input_layer", "prior", "posterior", "done", "reward")
PARTS += ("world model", "actor", "critic")
SIZES = {
    "atari": "690,624 4,884,931 1,842,432 791,552 1,053,696 4,196,352 526,849 657,151"
    " 14,643,587 1,053,702 1,181,439",
    "proprio": "3,178,496 4,227,096 1,448,960 791,552 1,053,696 1,050,624 526,849 657,151"
    " 12,934,424 1,056,780 1,181,439",
    "visual": "690,624 4,884,931 1,448,960 791,552 1,053,696 4,196,352 526,849 657,151"
    " 14,250,115 1,056,780 1,181,439",
}


@pytest.mark.parametrize("kind", SIZES)
def test_the_number_of_parameters_is_the_published_one(kind: str) -> None:
    models = load_config(ATARI, overrides=() if kind == "atari" else DMC).Models
    policy = CategoricalPolicy(6) if kind == "atari" else GaussianPolicy(6, 0.1, 1.0)
    codec = VectorCodec(models, 24) if kind == "proprio" else ImageCodec(models, (64, 64, 3))
    model, actor_critic = WorldModel(models, codec, policy), ActorCritic(models, policy)
    sequence = model.sequence
    modules = (model.encoder, model.decoder, sequence.blocks, sequence.input_layer, model.prior)
    modules += (model.posterior, model.done_head, model.reward_head, model)
    modules += (actor_critic.actor, actor_critic.critic)
    found = dict(zip(PARTS, map(count_parameters, modules), strict=True))
    assert {k: f"{v:,}" for k, v in found.items()} == dict(
        zip(PARTS, SIZES[kind].split(), strict=True)
    )
    assert count_parameters(actor_critic) == found["actor"] + found["critic"]


# ---------------------------------------------------------------------------------------- layers


@torch.no_grad()
@pytest.mark.parametrize(("posterior_norm", "gain"), [("true", 1.0), ("true", 3.0), ("false", 3.0)])
def test_the_latent_gain_scales_the_logits_at_the_start(posterior_norm: str, gain: float) -> None:
    """The gain scales the logits of posterior and prior, with a normalisation and without one."""

    def logits(value: float) -> list[torch.Tensor]:
        norm = f"Models.WorldModel.PosteriorNorm={posterior_norm}"
        config = load_small(norm, f"Models.WorldModel.LatentGain={value}")
        model = make_world_model(config, fresh=True)
        images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        deter = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
        return [model.posterior(model.encoder(images)), model.prior(deter)]

    posterior, prior = logits(1.0)
    scaled_posterior, scaled_prior = logits(gain)
    torch.testing.assert_close(scaled_posterior, gain * posterior)
    torch.testing.assert_close(scaled_prior, gain * prior)


@torch.no_grad()
def test_the_prior_gain_multiplies_the_priors_logits() -> None:
    deter = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
    models = [
        make_world_model(load_small(f"Models.WorldModel={{PriorGain: {gain}, Unimix: 0}}")).eval()
        for gain in (1.0, 1.3)
    ]
    plain, sharper = (model.predict_latent(deter) for model in models)
    torch.testing.assert_close(sharper, (1.3 * plain.log()).softmax(-1))
    assert not torch.allclose(sharper, plain, atol=1e-2)


def test_the_prior_drops_only_while_training() -> None:
    model = make_world_model(load_small("Models.WorldModel={PriorDropout: 0.3, Dropout: 0}"))
    deter = torch.randn(8, WIDTH)
    assert [m.p for m in model.prior.modules() if type(m) is nn.Dropout] == [0.3]
    assert not any(m.p for m in model.sequence.modules() if type(m) is nn.Dropout)
    assert not torch.equal(model.train().prior[0](deter), model.prior[0](deter))
    assert torch.equal(model.eval().prior[0](deter), model.prior[0](deter))


def test_indices_and_their_vectors_are_the_same_latents() -> None:
    config = load_small()
    model, batch = make_world_model(config).eval(), Data(firsts=FIRSTS).batch(config)
    torch.manual_seed(0)
    latent = torch.randint(CLASSES, (3, 7, STOCH))
    action = model.policy.encode(batch.action)
    by_index, _ = model.sequence(latent, action, batch.is_first)
    by_vector, _ = model.sequence(as_vector(latent), action, batch.is_first)
    torch.testing.assert_close(by_index, by_vector, **CLOSE)
    decoded = model.decoder(as_vector(latent.flatten(0, 1)))
    torch.testing.assert_close(model.decode(latent.flatten(0, 1)), decoded, **CLOSE)


# ------------------------------------------------------------------- parallel equals step by step


def read_out(memory: ImaginedMemory, count: int, width: int) -> Tensor:
    """The states (N, E, V), read one row at a time with steps that do not change them."""
    nothing = torch.zeros(count, width)
    rows = [
        memory.step(query.expand(count, -1), nothing, nothing, nothing)
        for query in torch.eye(width)
    ]
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("starts", [1, 3, 8, 9, 100])
@pytest.mark.parametrize("scan", ["Scan=sequential", "ScanChunk=3", "ScanChunk=16"])
@torch.no_grad()
def test_the_context_is_what_recurrent_steps_reach(scan: str, starts: int) -> None:
    config = load_small(f"Models.WorldModel.{scan}")
    model, batch = make_world_model(config).eval(), Data(3, 9, FIRSTS).batch(config)
    torch.manual_seed(5)
    post = model.encode(model.codec.prepare(batch.obs.flatten(0, 1)))
    latent = sample_index(post).view(3, 9, -1)
    torch.manual_seed(5)
    context = model.context(batch, starts)

    starts = min(starts, 8)  # the first step of a sequence has no deter before it
    deter = torch.zeros(3, 9, model.width)  # where each step starts from
    memories = [torch.zeros(3, 9, block.inner, block.inner) for block in model.sequence.blocks]
    previous = [torch.zeros(3, 9, block.width) for block in model.sequence.blocks]
    state = model.sequence.initial_state(3, deter.device)
    last = deter[:, 0]
    for t in range(9):
        state = state.reset(batch.is_first[:, t])
        deter[:, t] = last.masked_fill(batch.is_first[:, t, None], 0.0)
        for block, memory in enumerate(state.memories):
            memories[block][:, t], previous[block][:, t] = memory.memory, state.previous[block]
        last = model.sequence.step(latent[:, t], model.policy.encode(batch.action[:, t]), state)

    def starting(x: Tensor) -> Tensor:
        return x[:, 9 - starts :].flatten(0, 1)

    count, inner = 3 * starts, model.sequence.blocks[0].inner
    assert len(context.deter) == count
    torch.testing.assert_close(context.latent, starting(latent))
    torch.testing.assert_close(context.deter, starting(deter), **CLOSE)
    begins = starting(batch.is_first)
    assert torch.equal(context.begins, begins)
    found = [context.deter]
    for _ in range(2):  # the context is not used up
        state = context.history.start(context.steps, context.begins, inner)
        for block, memory in enumerate(state.memories):
            found += [read_out(memory, count, inner), state.previous[block]]
            torch.testing.assert_close(found[-2], starting(memories[block]), **CLOSE)
            torch.testing.assert_close(found[-1], starting(previous[block]), **CLOSE)
    for values in found:
        assert (values[begins] == 0).all()
        assert (values[~begins].flatten(1).abs().amax(1) > 0).all()


# ---------------------------------------------------------------------------------------- losses

NO_FREE_BITS = "Models.WorldModel.KLFree=0"


@pytest.mark.parametrize("free", [0.0, 1.0, 1e6])
def test_the_kl_terms_are_those_of_the_pairs_inside_episodes(free: float) -> None:
    config = load_small(f"Models.WorldModel.KLFree={free}")
    model, batch = make_world_model(config), Data(3, 7, FIRSTS[:4]).batch(config)
    torch.manual_seed(0)
    post, prior = torch.randn(2, 3, 7, 6, 5).log_softmax(-1).requires_grad_()
    dyn, rep, real = model._kl_losses(post, prior, batch.is_first)
    pairs = [(b, t) for b in range(3) for t in range(6) if not batch.is_first[b, t + 1]]
    assert len(pairs) == 18 - 3
    kls = [
        kl_divergence(Categorical(logits=post[b, t + 1]), Categorical(logits=prior[b, t])).sum()
        for b, t in pairs
    ]
    mean = torch.stack(kls).mean()
    torch.testing.assert_close(real, mean)
    for loss in (dyn, rep):
        torch.testing.assert_close(loss, mean.clamp_min(free))
    for loss, taught, stopped in ((dyn, prior, post), (rep, post, prior)):
        wanted, other = torch.autograd.grad(
            loss, (taught, stopped), retain_graph=True, allow_unused=True
        )
        assert other is None or (other == 0).all()
        trained = (wanted.flatten(2).abs().amax(2) > 0).nonzero().tolist()
        shift = 0 if taught is prior else 1
        assert trained == ([[b, t + shift] for b, t in pairs] if free < 1e6 else [])


def kl_and_prior_gradients(model: WorldModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The KL and the prior's gradients in eval mode, where BatchNorm does not mix the steps."""
    torch.manual_seed(0)
    model.eval().zero_grad()
    loss, metrics = model.loss(batch)
    loss.backward()
    gradients = [p.grad.flatten() for p in model.prior.parameters()]
    return metrics["real_kl"], torch.cat(gradients)


@pytest.mark.parametrize("changed", ["obs", "action"])
def test_data_across_a_boundary_does_not_alter_the_kl(changed: str) -> None:
    """A boundary before the last step masks the only pair with the last observation."""
    config = load_small(NO_FREE_BITS)
    model = make_world_model(config)
    for firsts, straddles in ((((0, 6),), True), ((), False)):
        batch = Data(3, 7, firsts).batch(config)
        step, value = (6, 255 - batch.obs[0, 6]) if changed == "obs" else (5, None)
        if value is None:
            value = (batch.action[0, 5] + 1) % ACTIONS
        other = batch._replace(**{changed: replace_at(getattr(batch, changed), 0, step, value)})
        kl, gradients = kl_and_prior_gradients(model, batch)
        other_kl, other_gradients = kl_and_prior_gradients(model, other)
        assert torch.allclose(kl, other_kl, rtol=1e-6) == straddles
        assert torch.allclose(gradients, other_gradients, rtol=1e-4, atol=1e-7) == straddles


def test_the_loss_is_the_sum_of_its_parts() -> None:
    config = load_small("Models.WorldModel.DynScale=0.5", "Models.WorldModel.RepScale=0.1")
    model, batch = make_world_model(config).eval(), Data(firsts=FIRSTS).batch(config)
    torch.manual_seed(0)
    total, metrics = model.loss(batch)
    torch.manual_seed(0)
    prepared = model.codec.prepare(batch.obs.flatten(0, 1))
    post = model.encode(prepared)
    latent = as_vector(sample_index(post))
    action = F.one_hot(batch.action, ACTIONS).float()
    deter, _ = model.sequence(latent.view(3, 7, -1), action, batch.is_first)
    flat = deter.flatten(0, 1)
    target = two_hot_weights(model.two_hot, batch.reward.flatten())
    expected = {
        "recon_loss": model.codec.loss(model.decoder(latent), prepared).mean(),
        "reward_loss": F.cross_entropy(model.reward_head(flat), target),
        "done_loss": F.binary_cross_entropy(
            model.done_head(flat).squeeze(-1).sigmoid(), batch.done.flatten().float()
        ),
        "vae_ent": Categorical(probs=post).entropy().sum(-1).mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value.detach(), **CLOSE)
    parts = metrics["recon_loss"] + metrics["reward_loss"] + metrics["done_loss"]
    parts = parts + 0.5 * metrics["dyn_loss"] + 0.1 * metrics["rep_loss"]
    torch.testing.assert_close(total.detach(), parts)
    assert min(metrics[name].item() for name in ("dyn_loss", "rep_loss")) > 1
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


def test_without_unimix_the_loss_and_its_gradients_stay_finite() -> None:
    """Posterior and prior are so certain that probabilities underflow."""
    config = load_small("Models.WorldModel.Unimix=0", NO_FREE_BITS)
    model, batch = make_world_model(config).eval(), Data(firsts=FIRSTS).batch(config)
    with torch.no_grad():
        for norm in (model.posterior[-1], model.prior[-1]):
            norm.weight *= 1e3
    probs = model.encode(model.codec.prepare(batch.obs.flatten(0, 1)))
    assert (probs == 0).any()
    torch.testing.assert_close(probs.sum(-1), torch.ones(21, STOCH))
    loss, metrics = model.loss(batch)
    loss.backward()
    assert all(torch.isfinite(value) for value in metrics.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert metrics["real_kl"] > 10


# -------------------------------------------------------------------------------------- training


def batch_norm_statistics(model: WorldModel) -> Tensor:
    values = [v.float().flatten() for k, v in model.named_buffers() if "running" in k]
    return torch.cat(values)


def test_imagination_leaves_the_world_model_as_it_is() -> None:
    config = load_small()
    agent, batch = make_agent(config), Data(firsts=FIRSTS).batch(config)
    before = {k: v.clone() for k, v in agent.world_model.state_dict().items()}
    agent.world_model.train()
    agent.train_actor_critic(agent.imagine(batch))
    for name, value in agent.world_model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not agent.world_model.training
    statistics = batch_norm_statistics(agent.world_model)
    agent.train_world_model(batch)
    assert agent.world_model.training
    assert not torch.equal(batch_norm_statistics(agent.world_model), statistics)


@pytest.mark.parametrize("discrete", [True, False])
def test_every_trainable_parameter_gets_a_gradient(discrete: bool) -> None:
    config = load_small("Models.WorldModel.RepScale=0")  # the posterior learns by its samples
    model = make_world_model(config, discrete=discrete).train()
    loss, _ = model.loss(Data(discrete=discrete).batch(config))
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_published_metrics_are_there() -> None:
    config = load_small()
    agent, batch = make_agent(config), Data().batch(config)
    metrics = agent.train_world_model(batch) | agent.train_actor_critic(agent.imagine(batch))
    world = ("recon_loss", "reward_loss", "dyn_loss", "rep_loss", "real_kl", "vae_ent")
    actor = ("value_loss", "policy_loss", "entropy", "scale", "lambda_return", "norm_adv")
    wanted = {f"WorldModel/{name}" for name in world} | {f"ActorCritic/{name}" for name in actor}
    assert wanted <= set(metrics)
    assert all(torch.isfinite(value) and value.ndim == 0 for value in metrics.values())


def test_it_overfits_one_batch() -> None:
    config = load_small(
        *("Models.WorldModel.LR=3.0e-3", "Models.Hidden=64"),
        *("Models.Stoch=8", "Models.Discrete=8", "Models.NumBin=255"),
    )
    agent = make_agent(config, fresh=True)
    batch = Data(2, 6, ((1, 0), (0, 3))).batch(config)
    torch.manual_seed(0)
    slope = torch.linspace(0, 255, 16).view(1, 1, 1, 16, 1)  # each step has its own colour
    obs = (slope * torch.rand(2, 6, 1, 1, 3)).expand(2, 6, 16, 16, 3).to(torch.uint8)
    batch = batch._replace(obs=obs)
    for _ in range(400):
        agent.train_world_model(batch)
    model = agent.world_model.eval()
    with torch.no_grad():
        losses = [model.loss(batch)[1] for _ in range(10)]  # latents are sampled anew
    found = {name: sum(loss[name].item() for loss in losses) / 10 for name in losses[0]}

    pixels = obs.flatten(0, 1) / 255
    mean_image_loss = 0.5 * (pixels - pixels.mean(0)).square().sum() / 12
    encoded = two_hot_weights(model.two_hot, batch.reward)
    least_reward_loss = Categorical(probs=encoded).entropy().mean()
    assert found["recon_loss"] < 0.3 * mean_image_loss
    assert found["reward_loss"] < least_reward_loss + 0.3  # log 255 = 5.5 at first
    assert found["done_loss"] < 0.2
    assert found["real_kl"] < 2
