"""The configuration: YAML sections as frozen, validated types.

Keys and their meaning are documented where they are declared, below; ``pwm_core.config_file`` reads
and writes them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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


def _count_or_task(value: Any) -> Any:
    value = _number(value)
    if value != "task" and (not isinstance(value, int | float) or value < 1 or value % 1):
        raise ValueError("it must be a whole number from 1 on, or task")
    return value if value == "task" else int(value)


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
    TF32: bool
    """On CUDA, float32 products and convolutions, the scan's among them, round their factors to
    TF32 (10 bits of mantissa); their sums stay float32. ``false``: float32 throughout."""
    Compile: Annotated[
        Literal["auto", "off", "compile", "graph", "compile+graph"], BeforeValidator(_off)
    ]
    """How a training step runs: ``off``, kernel by kernel; ``compile``, its losses and imagination
    through torch.compile; ``graph``, all of it as one CUDA graph (on a CPU: ``off``); or both.
    ``auto`` is ``off`` until the others are measured on the device at hand."""
    Threads: Annotated[int, BeforeValidator(_number), Field(ge=0)]
    """CPU threads of torch; 0: one per core. With 1, other work on the machine slows a small
    network down far less."""
    FrameSkip: Annotated[int | Literal["task"], BeforeValidator(_count_or_task)]
    """Emulator frames or simulator steps per agent step. DeepMind Control also takes ``task``: what
    pwm_dmc.action_repeat says of the task; a run's own config then holds that number."""
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
    """Actor-critic updates on each imagined batch; from the second on, actions are weighted by the
    ratio of the policies, clipped by Models.Agent.ClipRatio."""
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
    SequenceModel: Literal["linear_attention"]
    """The sequence model: a name of ``pwm_core.models.sequence_models``."""
    Blocks: Count
    """Blocks of the sequence model."""
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
    PriorDropout: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
    """Dropout in the prior's gated unit, while training; the published code has 0.1 there."""
    PriorGain: Positive
    """What the prior's logits are multiplied by, while training and imagining. The published prior
    starts with logits 1.3 times larger than ours at 1, since its BatchNorm also sees zero states:
    what it imagines is sharper."""
    MixFan: Literal["width", "mean"]
    """The token mixing weights start with the variance 1 / fan; the fan is Hidden (``width``), or
    the mean of fan-in and fan-out, (Hidden + 1) / 2 (``mean``)."""
    Unimix: Fraction
    """Share of the uniform distribution mixed into every latent categorical."""
    PosteriorNorm: bool
    """BatchNorm on the posterior's logits (the "BatchNorm trick"); an ablation switch."""
    LatentGain: Positive
    """What the scale of the BatchNorm on the latents' logits starts from. 1 (the paper's): latents
    begin noisy, and at ~1e-3 an update the scale needs thousands of updates to sharpen them."""
    Scan: Literal["sequential", "odd_even", "kogge_stone", "chunked", "triton"]
    """Scan backend of the sequence model; all compute the same numbers. ``triton`` needs CUDA."""
    ScanChunk: Count
    """Chunk length of the ``chunked`` backend, and of the states imagined from with ``triton``."""
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
    ClipRatio: Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1)]
    """Read with AgentUpdate above 1: an action counts as long as its probability is at most this
    share above or below that under the policy that acted (PPO's clip)."""
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
