"""Two small models of random weights that share the tiny tokenizer."""

import pytest
import torch

from llmcourse import pretrained
from llmcourse.model import Decoder, DecoderConfig


@pytest.fixture(scope="package")
def models(tiny_checkpoint):
    """{name: (model, tokenizer)}: 300 tokens, a context of 64."""
    base, tokenizer = pretrained.load(tiny_checkpoint)
    torch.manual_seed(1)
    config = DecoderConfig(300, 16, 32, 1, 2, 1, 8, 64, eos_token_ids=(0,))
    return {"base": (base, tokenizer), "draft": (Decoder(config).eval().requires_grad_(False), tokenizer)}
