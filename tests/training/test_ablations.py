"""Every ablation file loads over every config, trains, and changes what is computed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from pwm_atari.actor_critic import CategoricalPolicy
from pwm_core.config import Config
from pwm_core.config_file import leaves, load_config, read_yaml
from pwm_core.errors import UserError
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.networks import ImageCodec
from pwm_core.models.types import Batch
from pwm_core.models.world_model import WorldModel
from pwm_core.paths import REPOSITORY
from pwm_core.training.agent import Agent
from pwm_dmc.actor_critic import GaussianPolicy
from pwm_dmc.world_model import VectorCodec
from tests.helpers import ACTIONS, SMALL, Data, disturb

FOLDER = REPOSITORY / "config_files" / "ablations"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OBS = 5
"""Length of an observation from proprioception."""
FIRSTS = ((0, 0), (0, 4), (1, 3), (2, 6))
DEFAULT = {("atari", "rms_norm"), ("atari", "codec_batch_norm")}
DEFAULT |= {("dmc", "no_rms_norm"), ("dmc", "codec_layer_norm")}
"""These change nothing, since the domain's configs say the same."""
ROUNDING = {name for name in NAMES if name.startswith("scan_")}


def load(domain: str, *names: str, size: str = "_tiny") -> Config:
    layers = [f"config_files/{domain}{size}.yaml"]
    layers += [f"config_files/ablations/{name}.yaml" for name in names]
    small = [*SMALL, "Models.WorldModel={MLPUnits: 24, LatentGain: 1}"]
    small += ["JointTrainAgent={AgentUpdate: 2, ImagineHorizon: 4, ImagineContext: 8}"]
    overrides = small if size else ()
    defaults = f"config_files/{domain}.yaml"
    return load_config(",".join(layers), defaults=defaults, overrides=overrides)


def make_agent(domain: str, config: Config) -> Agent:
    """An agent on images and discrete actions (Atari), or on vectors and continuous ones (DMC)."""
    torch.manual_seed(0)
    if domain == "atari":
        policy = CategoricalPolicy(ACTIONS)
        codec = ImageCodec(config.Models, config.BasicSettings.ObsShape)
    else:
        bound = torch.ones(ACTIONS)
        policy = GaussianPolicy(ACTIONS, 0.1, 1.0, -bound, bound)
        codec = VectorCodec(config.Models, OBS)
    world_model = WorldModel(config.Models, codec, policy)
    actor_critic = ActorCritic(config.Models, policy)
    for part in (world_model, actor_critic):
        disturb(part)
    return Agent(config, world_model, actor_critic, torch.device("cpu"))


def make_batch(domain: str, config: Config) -> Batch:
    batch = Data(4, 9, FIRSTS, discrete=domain == "atari").batch(config)
    if domain == "dmc":
        generator = torch.Generator().manual_seed(3)
        batch = batch._replace(obs=torch.randn(4, 9, OBS, generator=generator))
    return batch


@torch.no_grad()
def take_weights(agent: Agent, other: Agent) -> None:
    """Give ``agent`` the weights of ``other`` that have the same name and shape."""
    for part in ("world_model", "actor_critic"):
        own, theirs = getattr(agent, part).state_dict(), getattr(other, part).state_dict()
        for name, value in own.items():
            if name in theirs and theirs[name].shape == value.shape:
                value.copy_(theirs[name])


@cache
def default_agent(domain: str) -> Agent:
    return make_agent(domain, load(domain))


def step(domain: str, *names: str) -> dict[str, float]:
    """The metrics of one training step from the default's weights, and the loss after it."""
    config = load(domain, *names)
    agent = make_agent(domain, config)
    take_weights(agent, default_agent(domain))
    batch = make_batch(domain, config)
    torch.manual_seed(1)
    metrics = agent.update(batch)
    with torch.no_grad():
        loss, _ = agent.world_model.loss(batch)
        value, _ = agent.actor_critic.loss(agent.imagine(batch))
    found = metrics | {"world model after": loss, "actor-critic after": value}
    return {name: float(number) for name, number in found.items()}


@cache
def default_step(domain: str) -> dict[str, float]:
    return step(domain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("domain", ["atari", "dmc"])
def test_an_ablation_trains_and_changes_the_computation(domain: str, name: str) -> None:
    found, default = step(domain, name), default_step(domain)
    assert found.keys() == default.keys()
    assert all(torch.tensor(list(found.values())).isfinite())
    assert found["WorldModel/grad_norm"] > 0
    assert found["ActorCritic/grad_norm"] > 0
    if (domain, name) in DEFAULT:
        assert found == default
    else:
        assert found != default
    if name in ROUNDING:
        assert found["WorldModel/total_loss"] == pytest.approx(
            default["WorldModel/total_loss"], rel=1e-5
        )


@pytest.mark.parametrize("size", ["", "_tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_an_ablation_lies_over_the_shipped_configs(name: str, size: str) -> None:
    """It changes the keys that it names, and one of the domains has another value there."""
    changes = leaves(read_yaml(FOLDER / f"{name}.yaml"))
    before = []
    for domain in ("atari", "dmc"):
        default = leaves(load(domain, size=size).model_dump())
        changed = leaves(load(domain, name, size=size).model_dump())
        assert changed == default | changes
        before.append({key: default[key] for key in changes})
    assert len(changes) == 1
    assert any(values != changes for values in before)


def test_the_default_of_every_switch_is_the_paper() -> None:
    """What the paper has is what a config without ablations computes."""
    for domain in ("atari", "dmc"):
        model = load(domain, size="").Models.WorldModel
        assert model.SequenceModel == "linear_attention"
        assert (model.Decay, model.TokenMixing) == ("data", True)
        assert (model.PosteriorNorm, model.CodecNorm) == (True, "auto")


def test_several_files_lie_over_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later ones win, paths are looked up one by one, and a fault is named with its file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("Models: {Gamma: 0.9, Lambda: 0.5}")
    (tmp_path / "two.yaml").write_text("Models: {Gamma: 0.8}")
    (tmp_path / "bad.yaml").write_text("Models: {Gama: 0.8}")
    (tmp_path / "comma,in name.yaml").write_text("Models: {Gamma: 0.7}")
    atari = "config_files/atari.yaml"

    def models(paths: str) -> tuple[float, float, int]:
        found = load_config(paths, defaults=atari).Models
        return found.Gamma, found.Lambda, found.Hidden

    assert models("one.yaml,two.yaml") == (0.8, 0.5, 512)
    assert models("two.yaml, one.yaml") == (0.9, 0.5, 512)
    assert models("config_files/atari_tiny.yaml,two.yaml") == (0.8, 0.95, 128)
    assert models("comma,in name.yaml")[0] == 0.7
    with pytest.raises(UserError, match=r"^bad.yaml: unknown key Models.Gama"):
        models("one.yaml,bad.yaml,two.yaml")
    with pytest.raises(UserError, match=r"config file three.yaml does not exist"):
        models("one.yaml,three.yaml")
