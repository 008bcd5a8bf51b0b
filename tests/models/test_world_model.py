"""The world model: its size, its two ways of running, its losses, and that it learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from pwm_atari.actor_critic import CategoricalPolicy
from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.models import networks
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.distributions import sample_index
from pwm_core.models.networks import BatchNorm1d, ImageCodec, LatentLinear, sum_rows
from pwm_core.models.scan import available_backends
from pwm_core.models.sequence_models.linear_attention import (
    ImaginedMemory,
    LinearAttention,
    LinearAttentionBlock,
    RecurrentMemory,
)
from pwm_core.models.types import Batch, Context
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
    dense,
    disturb,
    load_small,
    make_agent,
    make_world_model,
    replace_at,
    two_hot_weights,
    written_out,
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
EXACT = {"rtol": 1e-9, "atol": 1e-10}
"""In float64."""

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


def assert_same(found: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    """Two ways to compute one thing from ``leaves``: the values and the gradients."""
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


@torch.no_grad()
@pytest.mark.parametrize(("posterior_norm", "gain"), [("true", 1.0), ("true", 3.0), ("false", 3.0)])
def test_the_latent_gain_scales_the_logits_at_the_start(posterior_norm: str, gain: float) -> None:
    """Of posterior and prior, where they have a BatchNorm; nothing else changes."""

    def logits(value: float) -> list[torch.Tensor]:
        norm = f"Models.WorldModel.PosteriorNorm={posterior_norm}"
        config = load_small(norm, f"Models.WorldModel.LatentGain={value}")
        model = make_world_model(config, fresh=True)
        images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        deter = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
        return [model.posterior(model.encoder(images)), model.prior(deter)]

    posterior, prior = logits(1.0)
    scaled_posterior, scaled_prior = logits(gain)
    factor = gain if posterior_norm == "true" else 1.0
    torch.testing.assert_close(scaled_posterior, factor * posterior)
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


@pytest.mark.parametrize(("fan", "std"), [("width", 512**-0.5), ("mean", 256.5**-0.5)])
def test_the_spread_of_the_mixing_weights_is_as_configured(fan: str, std: float) -> None:
    overrides = (f"Models.WorldModel.MixFan={fan}", "Models.WorldModel.Blocks=40")
    torch.manual_seed(0)
    model = LinearAttention(load_config(ATARI, overrides=overrides).Models, ACTIONS)
    weights = torch.stack([block.mix for block in model.blocks])  # 40 x 512 of them
    assert weights.std().item() == pytest.approx(std, rel=0.02)
    assert weights.abs().max() < 2.3 * std  # cut off


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


def make_sequence(
    config: Config, rows: int = 3, steps: int = 9
) -> tuple[LinearAttention, Tensor, Tensor, Tensor]:
    """A sequence model in eval mode and what it takes in."""
    torch.manual_seed(0)
    model = LinearAttention(config.Models, ACTIONS).eval()
    disturb(model)
    is_first = Data(rows, steps, FIRSTS).batch(config).is_first
    latent = torch.randn(rows, steps, STOCH * CLASSES)
    return model, latent, torch.randn(rows, steps, ACTIONS), is_first


SCANS = [f"Scan={name}" for name in available_backends(torch.device("cpu"))]
VARIANTS = [(scan,) for scan in SCANS]
VARIANTS += [("ScanChunk=2",), ("ScanChunk=64",), ("OutputTanh=true", "RMSNorm=false")]
VARIANTS += [("BlockAct=Mish", "HeadDivisor=8", "Blocks=3")]


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=",".join)
@torch.no_grad()
def test_the_parallel_pass_is_the_recurrent_steps(variant: tuple[str, ...], indices: bool) -> None:
    config = load_small(*(f"Models.WorldModel.{change}" for change in variant))
    model, latent, action, is_first = make_sequence(config)
    model, latent, action = model.double(), latent.double(), action.double()
    if indices:
        latent = torch.randint(CLASSES, (*is_first.shape, STOCH))
    deter, history = model(latent, action, is_first, return_history=True)
    alone, no_history = model(latent, action, is_first)
    torch.testing.assert_close(alone, deter)
    assert no_history is None
    assert len(history.blocks) == config.Models.WorldModel.Blocks
    state = model.initial_state(3, latent.device)
    for t in range(latent.shape[1]):
        state = state.reset(is_first[:, t])
        stepped = model.step(latent[:, t], action[:, t], state)
        torch.testing.assert_close(deter[:, t], stepped, **EXACT)
        for block, parallel in enumerate(history.blocks):
            memory = state.memories[block].memory
            torch.testing.assert_close(dense(parallel.memory)[:, t], memory, **EXACT)
            torch.testing.assert_close(parallel.previous[:, t], state.previous[block], **EXACT)
    if config.Models.WorldModel.OutputTanh:
        assert deter.abs().max() < 1
    assert deter.std() > 0.1


@torch.no_grad()
def test_nothing_before_a_reset_and_nothing_later_reaches_a_step() -> None:
    model, latent, action, is_first = make_sequence(load_small())  # row 0 begins anew at step 4
    before, _ = model(latent, action, is_first)
    for step, reached in ((3, [3]), (4, [4, 5, 6, 7, 8])):
        after, _ = model(replace_at(latent, 0, step, latent[1, 0]), action, is_first)
        changed = ((before - after).abs() > 1e-4).any(-1)
        assert changed.nonzero().tolist() == [[0, t] for t in reached]


def block_by_hand(block: LinearAttentionBlock, u: Tensor, is_first: Tensor) -> Tensor:
    """The paper's equations of a block, for one row and one step at a time, in float64."""
    w = {name: value.double() for name, value in block.state_dict().items()}
    projections = w["projections.weight"].chunk(4)
    query, key, value, receptance = projections
    assert query.shape == (block.inner, block.width)
    mu = torch.sigmoid(w["mix"] + 1)
    outputs = torch.zeros_like(u).double()
    for b in range(u.shape[0]):
        state = torch.zeros(block.inner, block.inner).double()
        before = torch.zeros(block.width).double()
        for t in range(u.shape[1]):
            if is_first[b, t]:
                state, before = torch.zeros_like(state), torch.zeros_like(before)
            x = u[b, t].double()
            q, k = 1 + F.elu(query @ x), 1 + F.elu(key @ x)
            v = torch.sigmoid(receptance @ x) * (value @ x)
            g = torch.sigmoid(w["decay.weight"] @ (mu * x + (1 - mu) * before))
            state = g[:, None] * state + k[:, None] * v[None, :]
            o = q @ state
            if "attention_norm.weight" in w:
                o = o / (o.square().mean() + 1e-5).sqrt() * w["attention_norm.weight"]
            norm = (x.shape, w["norm.weight"], w["norm.bias"], 1e-5)
            y = F.layer_norm(w["output.weight"] @ o + x, *norm)
            a, b_ = (w["gated.gate.weight"] @ y + w["gated.gate.bias"]).chunk(2)
            norm = (x.shape, w["gated.norm.weight"], w["gated.norm.bias"], 1e-5)
            outputs[b, t] = F.layer_norm(a * torch.sigmoid(a) * b_ + y, *norm)
            before = x
    return outputs


@pytest.mark.parametrize("rms_norm", ["true", "false"])
@torch.no_grad()
def test_a_block_computes_the_equations(rms_norm: str) -> None:
    config = load_small(f"Models.WorldModel.RMSNorm={rms_norm}")
    torch.manual_seed(0)
    block = LinearAttentionBlock(config.Models).eval()
    disturb(block)
    u, is_first = torch.randn(3, 9, WIDTH), Data(3, 9, FIRSTS).batch(config).is_first
    found, _ = block(u, is_first)
    torch.testing.assert_close(found.double(), block_by_hand(block, u, is_first), **CLOSE)


@pytest.mark.parametrize("scan", [*SCANS, "ScanChunk=3"])
@pytest.mark.parametrize("steps", [slice(0, 9), slice(5, 9), slice(8, 9), slice(2, 6)], ids=str)
@torch.no_grad()
def test_imagining_on_is_the_recurrent_steps(scan: str, steps: slice) -> None:
    """The whole sequence model on :class:`ImaginedMemory`, from states it reached itself."""
    model, latent, action, is_first = make_sequence(load_small(f"Models.WorldModel.{scan}"))
    model, latent, action = model.double(), latent.double(), action.double()
    deter, history = model(latent, action, is_first, return_history=True)
    deter = deter[:, steps].flatten(0, 1)
    count = len(deter)
    zero = torch.rand(count) < 0.3
    imagined = history.start(steps, zero, 15)
    recurrent = written_out(Context(deter, deter, zero, steps, history))
    for _ in range(15):
        z, a = (torch.randn(count, width).double() for width in (latent.shape[-1], ACTIONS))
        found, expected = model.step(z, a, imagined), model.step(z, a, recurrent)
        torch.testing.assert_close(found, expected, **EXACT)


def read_out(memory: ImaginedMemory, count: int, width: int) -> Tensor:
    """(N, E, V) states, one row at a time: nothing is added and nothing decays."""
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


# --------------------------------------------------------------------------------------- dropout


@torch.no_grad()
def test_a_dropped_token_passes_the_state_through() -> None:
    """Each state is exactly the one before (zeros at a reset), or the one eval mode computes."""
    config = load_small("Models.WorldModel.Dropout=0.4", "Models.WorldModel.Scan=sequential")
    torch.manual_seed(0)
    block = LinearAttentionBlock(config.Models).train()
    is_first = torch.rand(20, 30) < 0.1
    u = torch.randn(20, 30, WIDTH)
    _, state = block(u, is_first, return_history=True)
    states = dense(state.memory)
    block.eval()
    dropped = torch.zeros(20, 30)
    for t in range(30):
        mask = is_first[:, t, None] if t else torch.ones(20, 1, dtype=torch.bool)
        before = states[:, t - 1].masked_fill(mask.unsqueeze(-1), 0.0)
        memory = RecurrentMemory(before)
        block.step(u[:, t], u[:, t - 1].masked_fill(mask, 0.0), memory)
        passed = (states[:, t] == before).flatten(1).all(1)
        torch.testing.assert_close(states[~passed, t], memory.memory[~passed], **CLOSE)
        dropped[:, t] = passed
    assert 0.33 < dropped.mean() < 0.47  # 0.4, and 3.5 standard deviations of 600 tokens
    assert dropped[is_first].mean() > 0.2
    for share in (dropped.mean(0), dropped.mean(1)):  # tokens are dropped one by one
        assert 0 < share.min() < share.max() < 1


@torch.no_grad()
def test_dropout_near_1_keeps_the_state_and_eval_mode_drops_nothing() -> None:
    config = load_small("Models.WorldModel.Dropout=0.999")
    torch.manual_seed(0)
    block, is_first = LinearAttentionBlock(config.Models), torch.zeros(2, 8, dtype=torch.bool)
    _, state = block.train()(torch.randn(2, 8, WIDTH), is_first, return_history=True)
    assert (dense(state.memory) == 0).all()
    _, state = block.eval()(torch.randn(2, 8, WIDTH), is_first, return_history=True)
    assert (dense(state.memory).flatten(2).abs().amax(2) > 0).all()


@torch.no_grad()
def test_dropout_reaches_both_outputs_of_a_block() -> None:
    config = load_small("Models.WorldModel.Dropout=0.25")
    dropouts = [m for m in LinearAttentionBlock(config.Models).modules() if type(m) is nn.Dropout]
    assert [dropout.p for dropout in dropouts] == [0.25, 0.25]


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
    """In eval mode, where BatchNorm ties no two steps together."""
    torch.manual_seed(0)
    model.eval().zero_grad()
    loss, metrics = model.loss(batch)
    loss.backward()
    gradients = [p.grad.flatten() for p in model.prior.parameters()]
    return metrics["real_kl"], torch.cat(gradients)


@pytest.mark.parametrize("changed", ["obs", "action"])
def test_data_across_a_boundary_does_not_alter_the_kl(changed: str) -> None:
    """The action before the last step and the last observation meet in one pair only."""
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
    """A posterior and a prior so certain that probabilities underflow."""
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


def test_images_are_scaled_to_one_and_back() -> None:
    codec = ImageCodec(load_small().Models, (16, 16, 3))
    obs = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    prepared = codec.prepare(obs)
    torch.testing.assert_close(prepared, obs.permute(0, 3, 1, 2) / 255)
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(codec.frames(prepared), obs)


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
