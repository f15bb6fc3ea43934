"""Teachers and students of random weights, small enough for float64."""

import torch

from llmcourse.model import Decoder, DecoderConfig

VOCAB, CONTEXT = 40, 48
TEACHER = dict(hidden_size=32, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8)
STUDENT = dict(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)


def tiny_config(**changes) -> DecoderConfig:
    sizes = dict(vocab_size=VOCAB, intermediate_size=24, max_position_embeddings=CONTEXT)
    return DecoderConfig(**sizes | changes)


def tiny_decoder(seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> Decoder:
    """Weights large enough to keep logits well apart."""
    model = Decoder(tiny_config(**changes)).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data.normal_(0, 0.25, generator=generator)
    return model


def tiny_student(seed: int = 1, dtype: torch.dtype = torch.float32, **changes) -> Decoder:
    return tiny_decoder(seed, dtype, **STUDENT | changes)


def tiny_teacher(seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> Decoder:
    return tiny_decoder(seed, dtype, **TEACHER | changes).requires_grad_(False)


def rows(count: int = 3, length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (count, length), generator=torch.Generator().manual_seed(seed))
