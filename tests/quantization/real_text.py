"""Embedded models, and real text that every Python has: its own source and its language reference."""

import copy
import functools
from pydoc_data import topics

import torch
import torch.nn.functional as F

from llmcourse import pretrained
from llmcourse.model import Decoder
from llmcourse.prompts import standard_library
from llmcourse.quantization.calibration import windows

NAMES = ("draft", "small")
LENGTH = 256


@functools.cache
def _loaded(name: str) -> pretrained.Pretrained:
    return pretrained.load(name)


def model_of(name: str) -> Decoder:
    """A copy that a test may change."""
    return copy.deepcopy(_loaded(name).model)


@functools.cache
def documents() -> tuple[list[str], list[str]]:
    """To calibrate with and to measure on."""
    prose = list(topics.topics.values())
    return prose[::2] + standard_library(), prose[1::2]


@functools.cache
def calibration_tokens(name: str, count: int = 16) -> torch.Tensor:
    return windows(documents()[0], _loaded(name).tokenizer, count=count, length=LENGTH)


@functools.cache
def held_out_tokens(name: str, count: int = 8) -> torch.Tensor:
    return windows(documents()[1], _loaded(name).tokenizer, count=count, length=LENGTH, seed=1)


@torch.no_grad()
def perplexity(model: Decoder, name: str) -> float:
    tokens = held_out_tokens(name)
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).exp().item()
