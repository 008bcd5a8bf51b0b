"""Sequence models behind one interface.

To add one, write its file, then name it here and in the config key
``Models.WorldModel.SequenceModel``.
"""

from __future__ import annotations

from pwm_core.config import Models
from pwm_core.models.sequence_models.attention import Attention
from pwm_core.models.sequence_models.base import SequenceModel
from pwm_core.models.sequence_models.gru import GRU
from pwm_core.models.sequence_models.linear_attention import LinearAttention
from pwm_core.models.sequence_models.ssm import SSM

SEQUENCE_MODELS: dict[str, type[SequenceModel]] = {
    "linear_attention": LinearAttention,
    "attention": Attention,
    "gru": GRU,
    "ssm": SSM,
}
"""The keys are the values of ``Models.WorldModel.SequenceModel``."""


def make_sequence_model(models: Models, action: int) -> SequenceModel:
    """The configured sequence model; ``action`` is the width of an encoded action."""
    return SEQUENCE_MODELS[models.WorldModel.SequenceModel](models, action)
