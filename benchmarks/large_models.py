"""Models of the large shapes with random weights, which decode as fast as real ones, and what bounds them."""

from __future__ import annotations

import dataclasses

import torch

from llmcourse import costs
from llmcourse.model import Decoder, DecoderConfig

KNOWN = {"llama3_8b": "Llama-3-8B", "llama2_7b": "Llama-2-7B", "qwen3_0.6b": "Qwen3-0.6B"}
CONFIGS = {
    name: DecoderConfig(**dataclasses.asdict(costs.MODELS[known]), max_position_embeddings=4096)
    for name, known in KNOWN.items()
}
PROMPT, NEW = 128, 200  # tokens of a prompt, and new ones


def random_model(name: str, **changes: int) -> Decoder:
    """`changes` are fields of the configuration."""
    return random_decoder(dataclasses.replace(CONFIGS[name], **changes))


def random_decoder(config: DecoderConfig) -> Decoder:
    """In bfloat16 on the GPU."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = Decoder(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


def random_prompts(model: Decoder, batch: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    vocab_size = min(30000, model.config.vocab_size)
    return torch.randint(0, vocab_size, (batch, PROMPT), generator=generator).tolist()


def step_bytes(name: str, batch: int, length: int) -> float:
    """What a step cannot do without: all weights once, and keys and values of `length` tokens a row.

    Activations are left out; a kernel may keep them where it likes.
    """
    found = costs.total(costs.model_costs(CONFIGS[name], costs.Step.decode(batch, length)))
    return found.weight_bytes + found.cache_bytes
