"""The configuration: YAML sections as frozen, validated types.

A domain's full config file (``config_files/atari.yaml``) holds every key and is the base over which
any other file is laid, so a file need only name what it changes. Keys and their meaning are
documented where they are declared, below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pwm_core.errors import UserError, closest

REPOSITORY = Path(__file__).resolve().parents[1]


def _parse_shape(value: Any) -> Any:
    """The published files write the shape as the string "(64, 64, 3)"."""
    if isinstance(value, str) and re.fullmatch(r"[\[(][\d\s,]+[\])]", value.strip()):
        value = [int(number) for number in re.findall(r"\d+", value)]
    if (
        not isinstance(value, list | tuple)
        or len(value) != 3
        or not all(type(size) is int and size > 0 for size in value)
    ):
        raise ValueError("it must be height, width and channels, as (64, 64, 3)")
    return tuple(value)


def _number(value: Any) -> Any:
    """``True`` is an int to Python, but never a count or a rate to the user; ``1e5``, a string to
    YAML, is a number to the user."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[\d.]+[eE][+-]?\d+\s*", value):
        return float(value)
    return value


def _off(value: Any) -> Any:
    """YAML reads a bare ``off`` as false."""
    return "off" if value is False else value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
NonNegative = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Activation = Literal["SiLU", "Mish", "ReLU", "GELU", "ELU"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BasicSettings(_Section):
    """What holds for the whole run."""

    Seed: Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**32)]
    """Seeds torch, NumPy and the environments; the flag ``-seed`` overrides it."""
    ObsShape: Annotated[tuple[int, int, int], BeforeValidator(_parse_shape)]
    """(height, width, channels) of an image observation."""
    ObsType: Literal["visual", "proprio"]
    """Pixels, or the vector of positions and velocities where a domain has one."""
    UseAmp: bool
    """bfloat16 autocast in the networks; scans, losses and normalisers stay float32."""
    Compile: Annotated[
        Literal["auto", "off", "compile", "graph", "compile+graph"], BeforeValidator(_off)
    ]
    """How a training step runs: ``off``, kernel by kernel; ``compile``, its losses and imagination
    through torch.compile; ``graph``, all of it as one CUDA graph (on a CPU: ``off``); or both.
    ``auto`` is ``off`` until the others are measured on the device at hand."""
    Threads: Annotated[int, BeforeValidator(_number), Field(ge=0)]
    """CPU threads of torch; 0: one per core. With 1, other work on the machine slows a small
    network down far less."""
    FrameSkip: Count
    """Emulator frames or simulator steps per agent step."""
    Protocol: str
    """The named evaluation protocol of the domain, written into every score file."""


class JointTrainAgent(_Section):
    """The training loop. Steps are agent steps, counted over all environments together."""

    SampleMaxSteps: Count
    """Agent steps of the whole run, warm-up included."""
    BufferMaxLength: Count
    """Transitions the replay holds, over all environments together."""
    BufferWarmUp: Count
    """Steps acted at random before the first update."""
    BufferStorage: Literal["auto", "device", "memory", "disk"]
    """Where the replay lies: the training device, host memory or a memory-mapped file.
    ``auto``: the device when there is room to spare, else host memory."""
    NumEnvs: Count
    """Environments stepped together while training."""
    BatchSize: Count
    """Replayed sequences per update (B)."""
    BatchLength: Annotated[int, BeforeValidator(_number), Field(ge=2)]
    """Steps per replayed sequence (T)."""
    ImagineBatchSize: Count
    """How many of the batch's sequences are imagined from."""
    ImagineContext: Count
    """How many last steps of each are imagined from."""
    ImagineHorizon: Count
    """Imagined steps (H)."""
    TrainModelEverySteps: Count
    """Agent steps per world-model update."""
    TrainAgentEverySteps: Count
    """Agent steps per imagination and actor-critic update."""
    AgentUpdate: Count
    """Actor-critic updates on each imagined batch."""
    SaveEverySteps: Count
    """Agent steps between checkpoints."""
    VideoLogStep: Count
    """Agent steps between logged videos."""
    LogEverySteps: Count
    """Agent steps between lines of training metrics: means since the line before."""
    MaxSkippedUpdates: Annotated[int, BeforeValidator(_number), Field(ge=0)]
    """Updates in a row that may be skipped because loss or gradient is not finite; one more ends
    the run. Looked at whenever metrics are logged."""
    EvalEnvs: Count
    """Environments evaluated side by side."""
    EvalEpisodes: Count
    """Episodes of an evaluation."""


class WorldModelConfig(_Section):
    """The world model (PWM)."""

    Stem: Count
    """Channels of the first convolution; each following one doubles them."""
    MinRes: Count
    """Height and width at which the encoder stops halving the image."""
    MLPLayers: Count
    """Layers of the proprioceptive encoder and decoder."""
    MLPUnits: Count
    """Their width."""
    Blocks: Count
    """Linear-attention blocks."""
    HeadDivisor: Count
    """Key and value width is Hidden / HeadDivisor."""
    BlockAct: Activation
    """Activation of the gated units (SiLU in the paper's equations, Mish in the published code)."""
    RMSNorm: bool
    """Normalise the attention output before its projection."""
    OutputTanh: bool
    """tanh on the last block's output."""
    Dropout: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
    """Token dropout and ordinary dropout in the blocks, while training."""
    Unimix: Fraction
    """Share of the uniform distribution mixed into every latent categorical."""
    PosteriorNorm: bool
    """BatchNorm on the posterior's logits (the "BatchNorm trick"); an ablation switch."""
    LatentGain: Positive
    """What the scale of the BatchNorm on the latents' logits starts from. 1 (the paper's): latents
    begin noisy, and at ~1e-3 an update the scale needs thousands of updates to sharpen them."""
    Scan: Literal["sequential", "odd_even", "kogge_stone", "chunked"]
    """Scan backend of the sequence model; all compute the same numbers."""
    ScanChunk: Count
    """Chunk length of the ``chunked`` backend."""
    DynScale: NonNegative
    """Weight of KL(sg[posterior] || prior)."""
    RepScale: NonNegative
    """Weight of KL(posterior || sg[prior])."""
    KLFree: NonNegative
    """Free nats of each KL."""
    LR: Positive
    Eps: Positive
    WeightDecay: NonNegative
    GradClip: Positive
    """Largest norm of the gradient."""


class AgentConfig(_Section):
    """Actor and critic (PETE)."""

    Layers: Count
    """Hidden layers of actor, critic, reward and done heads, Hidden wide."""
    Returns: Literal["lambda", "pete"]
    """How return targets are computed; equal where the importance ratios are 1."""
    ReturnScan: Literal["sequential", "odd_even", "kogge_stone"]
    """Scan backend of the returns."""
    SlowCritic: bool
    """Also train the critic towards the returns of its slowly moving average."""
    EntropyCoef: NonNegative
    LR: Positive
    Eps: Positive
    WeightDecay: NonNegative
    GradClip: Positive
    """Largest norm of the gradient."""
    MinPer: Fraction
    MaxPer: Fraction
    """Percentiles of the returns whose distance scales the advantage."""
    EMADecay: Fraction
    """Decay of their moving average."""
    MinStd: Positive
    MaxStd: Positive
    """Range of a continuous policy's standard deviation."""


class Models(_Section):
    """Sizes and objectives shared by world model and agent."""

    Hidden: Count
    """Width of the sequence model and of the heads (D)."""
    NumBin: Annotated[int, BeforeValidator(_number), Field(ge=2)]
    """Bins of the symlog two-hot heads."""
    MaxBin: Positive
    """Largest bin, in symlog space."""
    Act: Activation
    """Activation of encoders, decoders and heads."""
    Stoch: Count
    """Categoricals in the latent."""
    Discrete: Annotated[int, BeforeValidator(_number), Field(ge=2)]
    """Classes of each."""
    Gamma: Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1)]
    """Discount."""
    GammaPerFrame: bool
    """Gamma is per frame: an agent step is discounted by Gamma ** FrameSkip."""
    Lambda: Fraction
    """lambda of the returns."""
    Tau: Fraction
    """Share of the critic that moves into the slow critic at each update."""
    WorldModel: WorldModelConfig
    Agent: AgentConfig


class Config(_Section):
    """A whole config file."""

    Task: Literal["JointTrainAgent"]
    """What the published files call their one training procedure."""
    BasicSettings: BasicSettings
    JointTrainAgent: JointTrainAgent
    Models: Models

    @property
    def discount(self) -> float:
        """gamma of one agent step."""
        power = self.BasicSettings.FrameSkip if self.Models.GammaPerFrame else 1
        return self.Models.Gamma**power


def _impossible(config: Config) -> Iterable[tuple[str, str]]:
    """Values each valid alone that cannot go together: (key, what would be valid)."""
    train, models = config.JointTrainAgent, config.Models
    height, width, channels = config.BasicSettings.ObsShape
    if height != width or channels not in (1, 3):
        yield "BasicSettings.ObsShape", "must be square with 1 or 3 channels, as (64, 64, 3)"
    shrink, rest = divmod(height, models.WorldModel.MinRes)
    if rest or shrink < 2 or shrink & (shrink - 1):  # a power of two, at least 2
        yield (
            "Models.WorldModel.MinRes",
            f"must be the image height {height} halved one or more times",
        )
    if models.Hidden % models.WorldModel.HeadDivisor:
        yield "Models.WorldModel.HeadDivisor", f"must divide Models.Hidden = {models.Hidden}"
    if train.ImagineBatchSize > train.BatchSize:
        yield "JointTrainAgent.ImagineBatchSize", f"must be at most BatchSize = {train.BatchSize}"
    if train.ImagineContext > train.BatchLength:
        yield "JointTrainAgent.ImagineContext", f"must be at most BatchLength = {train.BatchLength}"
    if train.BufferWarmUp < train.BatchLength * train.NumEnvs:
        yield (
            "JointTrainAgent.BufferWarmUp",
            f"must be at least BatchLength x NumEnvs = {train.BatchLength * train.NumEnvs}, "
            "so that a whole sequence can be sampled",
        )
    if train.SampleMaxSteps <= train.BufferWarmUp:
        yield (
            "JointTrainAgent.SampleMaxSteps",
            f"must be above BufferWarmUp = {train.BufferWarmUp}, or nothing is trained",
        )
    if train.BufferMaxLength < train.BatchLength * train.NumEnvs:
        yield (
            "JointTrainAgent.BufferMaxLength",
            f"must be at least BatchLength x NumEnvs = {train.BatchLength * train.NumEnvs}",
        )
    if models.Agent.MinPer >= models.Agent.MaxPer:
        yield "Models.Agent.MinPer", f"must be below MaxPer = {models.Agent.MaxPer}"
    if models.Agent.MinStd > models.Agent.MaxStd:
        yield "Models.Agent.MinStd", f"must be at most MaxStd = {models.Agent.MaxStd}"


def find_config(path: str | Path) -> Path:
    """``path`` as seen from the working directory, then from the repository root.

    Raises:
        UserError: neither exists.
    """
    for candidate in (Path(path), REPOSITORY / path):
        if candidate.is_file():
            return candidate
    here = sorted(str(p.relative_to(REPOSITORY)) for p in REPOSITORY.glob("config_files/*.yaml"))
    raise UserError(f"config file {path} does not exist; there are {', '.join(here)}")


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason[:300]}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sections; see config_files/atari.yaml for their names")
    return content


def _overlay(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``change`` laid over it, section by section."""
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = _overlay(base[key], value) if both else value
    return merged


def _parse_override(text: str) -> dict[str, Any]:
    """``Section.Key=value`` -> nested mapping."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"-set {text}: write Section.Key=value, as Models.Gamma=0.99")
    try:
        nested: Any = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"-set {text}: the value is not valid YAML") from None
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def _section_keys(location: tuple[str, ...]) -> list[str]:
    """The valid keys of the section at ``location``."""
    section: type[BaseModel] = Config
    for name in location:
        section = section.model_fields[name].annotation  # type: ignore[assignment]
    return list(section.model_fields)


def _explain(error: pydantic.ValidationError, source: str) -> str:
    """The first error as one line: file, key, what is wrong, what would be valid."""
    first = error.errors()[0]
    location = tuple(str(part) for part in first["loc"])
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        valid = _section_keys(location[:-1])
        hint = closest(location[-1], valid) or f"; valid keys: {', '.join(valid)}"
        return f"{source}: unknown key {key}{hint}"
    if first["type"] == "missing":
        return f"{source}: {key} is missing"
    if first["type"] == "model_type":
        return f"{source}: {key} must be a section of keys: {', '.join(_section_keys(location))}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = repr(first["input"])
    given = given if len(given) <= 60 else given[:57] + "..."
    return f"{source}: {key} = {given} is not valid: {message}"


def _validate(content: Mapping[str, Any], source: str) -> Config:
    try:
        config = Config.model_validate(content)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error, source)) from None
    return config


def load_config(
    path: str | Path, *, defaults: str | Path | None = None, overrides: Iterable[str] = ()
) -> Config:
    """Read ``path`` over the domain's ``defaults``, then apply ``-set`` overrides.

    Raises:
        UserError: a file is missing, a key unknown, a type wrong or a value impossible.
    """
    path, overrides = find_config(path), list(overrides)
    content = _read(path)
    if defaults is not None:
        content = _overlay(_read(REPOSITORY / defaults), content)
    config = _validate(content, str(path))
    for override in overrides:
        content = _overlay(content, _parse_override(override))
        config = _validate(content, f"-set {override}")
    for key, need in _impossible(config):  # after all of them: keys that go together may change
        named = [f"-set {text}" for text in overrides if text.partition("=")[0].strip() == key]
        raise UserError(
            f"{[str(path), *named][-1]}: {key} = {_value(config, key)} is impossible: it {need}"
        )
    return config


def _value(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def dump_config(config: Config) -> str:
    """The resolved config as YAML that :func:`load_config` reads back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
