"""Models of the large shapes with random weights, which decode as fast as real ones, and what bounds them."""

from __future__ import annotations

import dataclasses

import torch

from llmcourse import costs, timing
from llmcourse.model import Decoder, DecoderConfig

CONFIGS = {
    "llama3_8b": DecoderConfig(
        128256,
        4096,
        14336,
        32,
        32,
        8,
        128,
        8192,
        rms_norm_eps=1e-5,
        rope_theta=5e5,
        tie_word_embeddings=False,
    ),
    "llama2_7b": DecoderConfig(32000, 4096, 11008, 32, 32, 32, 128, 4096, 1e-5, tie_word_embeddings=False),
    "qwen3_0.6b": DecoderConfig(151936, 1024, 3072, 28, 16, 8, 128, 40960, rope_theta=1e6, qk_norm=True),
}
PROMPT, NEW = 128, 200  # tokens of a prompt, and new ones


def random_model(name: str, **changes: int) -> Decoder:
    """In bfloat16 on the GPU; `changes` are fields of the configuration."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = Decoder(dataclasses.replace(CONFIGS[name], **changes))
    finally:
        torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


def random_prompts(model: Decoder, batch: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    vocab_size = min(30000, model.config.vocab_size)
    return torch.randint(0, vocab_size, (batch, PROMPT), generator=generator).tolist()


def step_bytes(name: str, batch: int, length: int) -> float:
    """Read for one step: the matrices, the head, and keys and values of `length` tokens a row."""
    return costs.total(costs.model_costs(CONFIGS[name], costs.Step.decode(batch, length))).read_bytes


def copy_gbps() -> float:
    """GB/s of a device-to-device copy, bytes read and written, best of a few sizes.

    Not in a CUDA graph, where a copy is slower than kernels are.
    """
    speeds = []
    for gigabytes in (2, 4):
        source = torch.randint(256, (gigabytes * 10**9,), dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        found = timing.measure(lambda s=source, t=target: t.copy_(s), device="cuda")
        speeds.append(2 * source.numel() / found.median_s / 1e9)
        del source, target
    torch.cuda.empty_cache()
    return max(speeds)
