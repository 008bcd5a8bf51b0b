"""The game that the tests of learning play."""

from pwm_atari.catch import Catch

__all__ = ["Catch"]
