"""The image codec alone: encoder, decoder and image loss, forward and backward::

    python -m benchmarks.codec --save cpu

The ways are timed in turns. ``plain loss`` has the image loss as operations of torch; ``as it is``
is the codec that trains. ``floor`` is the time that its products and convolutions alone would take
at the speed of a large product, timed in the same minutes. The last columns split one call.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import measure
from pwm_core.commands.cli import run_command
from pwm_core.config_file import load_config
from pwm_core.models.networks import ImageCodec
from pwm_core.runtime import keep_freed_memory

SHAPE = (64, 64, 3)
FILES = {"atari_tiny": 128, "atari": 1024}
"""Config files, and the images of one of their batches."""
GROUPS = {"conv": "convolutions", "batch_norm": "BatchNorm", "silu": "SiLU"}
"""A part of an operation's name -> the column of its time."""


def plain_loss(decoded: Tensor, prepared: Tensor) -> Tensor:
    """:func:`pwm_core.models.networks.quantised_loss` as torch's own operations."""
    error = F.hardshrink(decoded.float() - prepared, 0.5 / 255)
    return 0.5 * error.square().sum((1, 2, 3))


class Step:
    """One forward and backward pass of a codec.

    Args:
        codec: encoder, decoder and loss.
        obs: (N, height, width, channels) uint8.
        latent: (N, S*K) one-hot, the decoder's input.
        dtype: bfloat16 means autocast.
        compiled: whether encoder, decoder and loss go through torch.compile.
    """

    def __init__(
        self, codec: ImageCodec, obs: Tensor, latent: Tensor, dtype: torch.dtype, *, compiled: bool
    ) -> None:
        self.codec, self.obs, self.latent = codec, obs, latent
        self.autocast = torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16)
        self._passes = torch.compile(self._forward, dynamic=False) if compiled else self._forward

    def _forward(self, prepared: Tensor, latent: Tensor) -> Tensor:
        features = self.codec.encoder(prepared)
        loss = self.codec.loss(self.codec.decoder(latent), prepared)
        return loss.mean() + features.square().mean()

    def forward(self) -> Tensor:
        """The sum of the losses, a scalar."""
        with self.autocast:
            return self._passes(self.codec.prepare(self.obs), self.latent)

    def __call__(self) -> None:
        """Both passes."""
        self.forward().backward()


def steps(file: str, images: int) -> Iterator[tuple[str, Step]]:
    """The ways to run the codec of a config file, by name."""
    config = load_config(f"config_files/{file}.yaml", defaults="config_files/atari.yaml").Models
    generator = torch.Generator().manual_seed(0)
    obs = torch.randint(0, 256, (images, *SHAPE), dtype=torch.uint8, generator=generator)
    classes = torch.randint(0, config.Discrete, (images, config.Stoch), generator=generator)
    latent = F.one_hot(classes, config.Discrete).float().flatten(1)
    codec = ImageCodec(config, SHAPE)
    plain = copy.deepcopy(codec)
    plain._error = plain_loss
    channels_first = copy.deepcopy(codec)
    for part in (channels_first.encoder, channels_first.decoder):
        part.to(memory_format=torch.contiguous_format)
    channels_first.prepare = lambda obs: codec.prepare(obs).contiguous()
    for name, one, dtype, compiled in (
        ("plain loss", plain, torch.float32, False),
        ("as it is", codec, torch.float32, False),
        ("compiled", codec, torch.float32, True),
        ("channels first", channels_first, torch.float32, False),
        ("bf16", codec, torch.bfloat16, False),
        ("bf16, compiled", codec, torch.bfloat16, True),
    ):
        yield name, Step(one, obs, latent, dtype, compiled=compiled)


def shares(step: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of one call by :data:`GROUPS`, and of all other operations."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    found = dict.fromkeys((*GROUPS.values(), "other"), 0.0)
    for event in profiler.key_averages():
        column = next((GROUPS[part] for part in GROUPS if part in event.key), "other")
        found[column] += event.self_cpu_time_total / 1e3
    return {f"{name} (ms)": value for name, value in found.items()}


def measure_file(file: str, images: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each way to run the codec of ``file``."""
    device = torch.device("cpu")
    ways = dict(steps(file, images))
    times = measure.turn_by_turn(list(ways.values()), device, repeats)
    products = measure.flops(ways["as it is"])
    speed = {kind: measure.peak_flops(device, kind) for kind in (torch.float32, torch.bfloat16)}
    median = {name: statistics.median(taken) for name, taken in zip(ways, times, strict=True)}
    rows = []
    for name, step in ways.items():
        kind = torch.bfloat16 if name.startswith("bf16") else torch.float32
        rows.append(
            {
                "codec": file, "images": images, "way": name, "time (ms)": 1e3 * median[name],
                "of plain": median[name] / median["plain loss"],
                "floor (ms)": 1e3 * products / speed[kind], **shares(step),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Print the table; with ``--save NAME`` also write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--save", metavar="NAME", help="benchmarks/results/codec_NAME.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    rows = []
    for file in arguments.files:
        rows += measure_file(file, FILES[file], arguments.repeats)
    print(measure.table(rows))
    if arguments.save:
        print(f"\nsaved {measure.save(f'codec_{arguments.save}', rows, torch.device('cpu'))}")


if __name__ == "__main__":
    run_command(main)
