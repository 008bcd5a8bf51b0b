"""The configuration: YAML sections as frozen, validated types.

Every key is documented where it is declared. ``pwm_core.config_file`` reads and writes the files.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

ROUNDING = (
    "BasicSettings.Compile",
    "BasicSettings.GraphCheck",
    "Models.WorldModel.Kernels",
    "Models.WorldModel.Scan",
    "Models.WorldModel.ScanChunk",
    "Models.WorldModel.SSMScan",
    "Models.Agent.ReturnScan",
)
"""Keys that change how a step is computed, and its numbers only up to rounding. They may change
when a run continues, and they do not distinguish runs."""
EXTENDABLE = ("JointTrainAgent.SampleMaxSteps", "JointTrainAgent.BufferMaxLength")
"""Keys that may be raised when a run continues."""


def _parse_shape(value: Any) -> Any:
    """A shape as a tuple; the published files write it as the string "(64, 64, 3)"."""
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
    """Refuse booleans, which Python takes for ints, and read ``1e5``, which YAML takes for text."""
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


def _bool_or_layer(value: Any) -> Any:
    if value != "layer" and not isinstance(value, bool):
        raise ValueError("it must be true (BatchNorm), layer (LayerNorm) or false (none)")
    return value


def _off(value: Any) -> Any:
    """The string ``off``, which YAML reads as false."""
    return "off" if value is False else value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
NonNegative = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Activation = Literal["SiLU", "Mish", "ReLU", "GELU", "ELU"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BasicSettings(_Section):
    """Settings of the whole run."""

    Seed: Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**32)]
    """Seed of torch, NumPy and the environments; the flag ``-seed`` overrides it."""
    ObsShape: Annotated[tuple[int, int, int], BeforeValidator(_parse_shape)]
    """(height, width, channels) of an image observation."""
    ObsType: Literal["visual", "proprio"]
    """``visual``: pixels. ``proprio``: a vector of positions and velocities, where there is one."""
    UseAmp: bool
    """Use bfloat16 autocast in the networks. Scans, losses and sums inside a normalisation stay in
    float32. The result of a LayerNorm is float32 on CUDA, and rounded to bfloat16 on a CPU."""
    TF32: bool
    """On CUDA without UseAmp, round the factors of products and convolutions to TF32 (10 bits of
    mantissa); sums stay in float32. The factors of the scan are then rounded too, except with
    ``Scan: triton``. With UseAmp nothing is rounded to TF32: the scan and the values, which UseAmp
    leaves in float32, are computed in full precision."""
    Compile: Annotated[
        Literal["auto", "off", "compile", "graph", "compile+graph"], BeforeValidator(_off)
    ]
    """How a training step runs. ``off``: eagerly. ``compile``: losses and imagination through
    torch.compile. ``graph``: the whole step as one CUDA graph (on a CPU this is ``off``).
    ``compile+graph``: both. ``auto``: ``graph`` on CUDA, where an eager step launches thousands of
    kernels one by one, and ``off`` on a CPU. Where a graph cannot be captured, the run says so and
    goes on eagerly."""
    GraphCheck: bool
    """Before the first captured training step, take a few steps eagerly and captured, each from the
    same state and random numbers, compare their metrics and their changes of the weights, and take
    them back. If they differ by more than 1e-3, the run says so and goes on eagerly."""
    Threads: Annotated[int, BeforeValidator(_number), Field(ge=0)]
    """CPU threads of torch; 0 means one per core. With one thread, a small network suffers far less
    from other work on the machine."""
    FrameSkip: Annotated[int | Literal["task"], BeforeValidator(_count_or_task)]
    """Emulator frames or simulator steps per agent step. DeepMind Control also takes ``task``, the
    number that ``pwm_dmc.action_repeat`` has for the task. The config of a run then holds
    that number."""
    Protocol: str
    """Name of the domain's evaluation protocol; every score file contains it."""


class JointTrainAgent(_Section):
    """The training loop. Steps are agent steps, summed over all environments."""

    SampleMaxSteps: Count
    """Agent steps of the whole run, including the warm-up."""
    BufferMaxLength: Count
    """Capacity of the replay buffer in transitions, summed over all environments."""
    BufferWarmUp: Count
    """Steps with random actions before the first update."""
    BufferStorage: Literal["auto", "device", "memory", "disk"]
    """Where the replay buffer is stored. ``device``: on the training device. ``memory``: in host
    memory. ``disk``: in memory-mapped files. ``auto``: on the device if it has enough free memory,
    otherwise in host memory."""
    NumEnvs: Count
    """Number of environments that training steps together."""
    BatchSize: Count
    """Replayed sequences per update (B)."""
    BatchLength: Annotated[int, BeforeValidator(_number), Field(ge=2)]
    """Steps per replayed sequence (T)."""
    ImagineBatchSize: Count
    """Number of the batch's sequences that imagination starts from. With ``Method: storm``, number
    of contexts that are sampled apart from the batch."""
    ImagineContext: Count
    """Number of last steps of each of those sequences that imagination starts from. With ``Method:
    storm``, steps of a context, after whose last step imagination starts."""
    ImagineHorizon: Count
    """Imagined steps of a rollout (H)."""
    TrainModelEverySteps: Count
    """Agent steps per world-model update."""
    TrainAgentEverySteps: Count
    """Agent steps per imagination and actor-critic update."""
    AgentUpdate: Count
    """Actor-critic updates on each imagined batch. From the second update on, the policy loss is
    clipped by Models.Agent.ClipRatio."""
    UseDemonstration: bool
    """Add sequences of the recorded trajectory ``-trajectory_path`` to every update."""
    DemonstrationBatchSize: Count
    """Sequences of the recorded trajectory in a world-model update, in addition to BatchSize."""
    ImagineDemonstrationBatchSize: Count
    """Contexts of the recorded trajectory in addition to ImagineBatchSize; read only with ``Method:
    storm``."""
    SaveEverySteps: Count
    """Agent steps between checkpoints."""
    VideoLogStep: Count
    """Agent steps between logged videos."""
    LogEverySteps: Count
    """Agent steps between lines of training metrics. A line holds means since the previous line."""
    MaxSkippedUpdates: Annotated[int, BeforeValidator(_number), Field(ge=0)]
    """Largest number of consecutive updates that may be skipped because the loss or the gradient is
    not finite. One more ends the run. The number is checked whenever metrics are logged."""
    EvalEnvs: Count
    """Number of environments that an evaluation steps together."""
    EvalEpisodes: Count
    """Episodes of an evaluation."""


class WorldModelConfig(_Section):
    """The world model (PWM)."""

    Stem: Count
    """Channels of the first convolution; each later one doubles them."""
    MinRes: Count
    """Height and width at which the encoder stops halving the image."""
    MLPLayers: Count
    """Layers of the proprioceptive encoder and decoder."""
    MLPUnits: Count
    """Width of the proprioceptive encoder and decoder."""
    SequenceModel: Literal["linear_attention", "attention", "gru", "ssm"]
    """The sequence model, a name of ``pwm_core.models.sequence_models``. ``linear_attention``: the
    paper's. ``attention``: STORM's transformer. ``gru``: gated recurrent units. ``ssm``: a diagonal
    state-space model, linear and not selective."""
    Blocks: Count
    """Blocks of the sequence model."""
    HeadDivisor: Count
    """Keys and values have the width Hidden / HeadDivisor (E and V)."""
    BlockAct: Activation
    """Activation of the gated units (SiLU in the paper's equations, Mish in the published code)."""
    RMSNorm: bool
    """Normalise the attention output before its projection."""
    OutputTanh: bool
    """Apply tanh to the last block's output."""
    Dropout: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
    """Rate of dropout in the blocks during training, and of token dropout, which only
    ``linear_attention`` has."""
    PriorDropout: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
    """Dropout rate in the prior's gated unit during training. The published code has 0.1."""
    PriorGain: Positive
    """Factor of the prior's logits in training and imagination. The logits of the published prior
    start 1.3 times larger than ours with a gain of 1, because its BatchNorm also sees zero states.
    Its imagined latents are therefore sharper."""
    Heads: Count
    """Heads of ``attention``."""
    FeedForwardAct: Activation
    """Activation of the feed-forward layers of ``attention``."""
    Positions: Count
    """Size of ``attention``'s table of learned positions: the longest sequence it takes. A step's
    position is the number of earlier steps that it sees, all of its own episode."""
    ActingWindow: Count
    """Last steps of an episode that ``attention`` sees when it acts."""
    ImagineWindow: Count
    """Last steps before the start of an imagined rollout that ``attention`` sees in it."""
    SSMScan: Literal["sequential", "odd_even", "kogge_stone", "fft"]
    """Scan backend of ``ssm``; all compute the same numbers. ``fft`` convolves where no episode
    begins inside the sequences of a batch, and scans where one does; a CUDA graph cannot do
    that."""
    TokenMixing: bool
    """Compute the decay of ``linear_attention`` from a mixture of the current and the previous
    input. ``false``: from the current one alone. Read only with ``Decay: data``."""
    Decay: Literal["data", "learned", "none"]
    """Decay of ``linear_attention``'s state. ``data``: from the inputs, by token mixing (the
    paper's). ``learned``: one learned constant for each key channel. ``none``: 1, the state forgets
    nothing before a reset."""
    MixFan: Literal["width", "mean"]
    """The token-mixing weights start with the variance 1 / fan. ``width``: the fan is Hidden.
    ``mean``: it is the mean of fan-in and fan-out, (Hidden + 1) / 2."""
    Unimix: Fraction
    """Weight of the uniform distribution that is mixed into every latent categorical."""
    ImageOutput: Literal["sigmoid", "linear"]
    """What ends the image decoder. ``linear``: nothing, so that pixels are not bounded (STORM)."""
    ImageLoss: Literal["quantised", "squared"]
    """Reconstruction loss of an image. ``quantised``: half the squared error, in which values that
    agree after rounding to 8 bits count 0. ``squared``: the plain squared error (STORM). Both are
    summed over the image."""
    Prior: Literal["gated", "linear"]
    """Layers of the prior. ``gated``: a gated unit, a linear layer and BatchNorm. ``linear``: one
    linear layer (STORM)."""
    PosteriorBias: bool
    """Give the posterior's linear layer a bias (STORM). It has an effect only without BatchNorm."""
    PosteriorNorm: Annotated[bool | Literal["layer"], BeforeValidator(_bool_or_layer)]
    """Normalisation of the posterior's logits. ``true``: BatchNorm (the "BatchNorm trick").
    ``layer``: LayerNorm. ``false``: none."""
    CodecNorm: Literal["auto", "batch", "layer", "none"]
    """Normalisation in encoder and decoder. ``auto``: the paper's, BatchNorm for images and
    LayerNorm for vectors. ``batch``, ``layer``: that one for both; of an image, LayerNorm
    normalises the channels at each position. ``none``: no normalisation; the layers then have
    biases."""
    ObsNorm: Literal["none", "running", "small"]
    """How vectors of observations are scaled for encoder and decoder. ``none``: not (the paper).
    ``running``: the mean of each entry is subtracted, and it is divided by its standard deviation,
    both over all batches so far. ``small``: the same, but entries with a standard deviation above 1
    are not divided. With both, entries are clipped to 10 standard deviations. Images are not
    changed."""
    LatentGain: Positive
    """Multiplies the logits of posterior and prior at the start, through the weights of their last
    layer: a normalisation, or a linear layer where there is none. With the paper's 1, latents start
    noisy. The scale of a normalisation changes by about 1e-3 per update, so sharpening them takes
    thousands of updates. Logits that are not normalised start smaller, and need a larger gain for
    latents that are as sharp."""
    Scan: Literal["sequential", "odd_even", "kogge_stone", "chunked", "triton"]
    """Scan backend of the sequence model. All compute the same numbers; ``triton`` needs CUDA."""
    ScanChunk: Count
    """Chunk length (L) of ``chunked``, and with ``triton`` of the states that imagination reads."""
    Kernels: Literal["auto", "torch"]
    """``auto``: on CUDA, an imagined step of attention is one Triton kernel, and so is a LayerNorm
    with its activation. ``torch``: torch's own operations everywhere. Both compute the same numbers
    up to rounding, and on a CPU both are ``torch``."""
    DynScale: NonNegative
    """Weight of KL(sg[posterior] || prior)."""
    RepScale: NonNegative
    """Weight of KL(posterior || sg[prior])."""
    KLFree: NonNegative
    """Free nats of each KL."""
    LR: Positive
    """Learning rate of AdamW."""
    Eps: Positive
    """Epsilon of AdamW."""
    WeightDecay: NonNegative
    """Weight decay of AdamW."""
    GradClip: Positive
    """Gradients with a larger norm are scaled down to this norm."""


class AgentConfig(_Section):
    """Actor and critic."""

    Layers: Count
    """Hidden layers of the actor, critic, reward and done heads; their width is Hidden."""
    Returns: Literal["lambda", "pete"]
    """Estimator of the return targets. Both are equal where the importance ratios are 1."""
    ReturnScan: Literal["sequential", "odd_even", "kogge_stone"]
    """Scan backend of the returns."""
    SlowCritic: bool
    """Also train the critic towards returns bootstrapped from its slowly moving average."""
    StepWeight: Literal["discount", "one"]
    """Weight of an imagined step in the losses. ``discount``: the product of the discounts before
    it. ``one``: 1, also after a predicted end (STORM)."""
    EntropyCoef: NonNegative
    """Weight of the policy's entropy bonus."""
    ClipRatio: Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1)]
    """PPO's clip of the probability ratio between the current policy and the policy that acted. It
    is used only with AgentUpdate above 1."""
    LR: Positive
    """Learning rate of AdamW."""
    Eps: Positive
    """Epsilon of AdamW."""
    WeightDecay: NonNegative
    """Weight decay of AdamW."""
    GradClip: Positive
    """Gradients with a larger norm are scaled down to this norm."""
    Percentile: Literal["interpolated", "kth"]
    """How percentiles of the n returns of an update are read. ``interpolated``: between the two
    nearest returns. ``kth``: the return at the position int(percentile * n) of the sorted ones
    (STORM)."""
    MinPer: Fraction
    """Lower percentile of the returns; its distance from the upper one scales the advantage."""
    MaxPer: Fraction
    """Upper percentile of the returns."""
    EMADecay: Fraction
    """Decay of the percentiles' moving averages."""
    MinStd: Positive
    """Smallest standard deviation of a continuous policy."""
    MaxStd: Positive
    """Largest standard deviation of a continuous policy."""


class Models(_Section):
    """Sizes and objectives of the world model and of the actor and critic."""

    Method: Literal["pamorl", "storm"]
    """Where imagination starts, and which latent the policy reads when it acts. ``pamorl``: at the
    replayed states of the batch; the latent of the frame that it sees. ``storm``: after contexts
    that are sampled apart; the latent that the prior predicts before the frame is seen. The other
    differences between the two methods are keys of their own."""
    Hidden: Count
    """Width of the sequence model and of the heads (D)."""
    NumBin: Annotated[int, BeforeValidator(_number), Field(ge=2)]
    """Bins of the symlog two-hot heads (C)."""
    MaxBin: Positive
    """Largest bin, in symlog space."""
    Act: Activation
    """Activation of encoders, decoders and heads."""
    ZeroHeads: bool
    """Start the last layers of the actor, critic, reward and done heads with zeros."""
    Stoch: Count
    """Categoricals of a latent (S)."""
    Discrete: Annotated[int, BeforeValidator(_number), Field(ge=2)]
    """Classes of each categorical (K)."""
    Gamma: Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1)]
    """Discount."""
    GammaPerFrame: bool
    """Whether Gamma is per frame. An agent step is then discounted by Gamma ** FrameSkip."""
    Lambda: Fraction
    """lambda of the returns."""
    Tau: Fraction
    """Fraction by which the slow critic moves towards the critic at each update."""
    WorldModel: WorldModelConfig
    Agent: AgentConfig


class Config(_Section):
    """A whole config file."""

    Task: Literal["JointTrainAgent"]
    """The name that the published files give to their training procedure."""
    BasicSettings: BasicSettings
    JointTrainAgent: JointTrainAgent
    Models: Models

    @property
    def discount(self) -> float:
        """gamma of one agent step."""
        power = self.BasicSettings.FrameSkip if self.Models.GammaPerFrame else 1
        return self.Models.Gamma**power
