"""A decoder of two layers with random weights, and adapters that have a say, in double precision."""

import torch

from llmcourse.blockwise import AdapterConfig, BlockDecoder
from llmcourse.model import Decoder, DecoderConfig

VOCAB = 40


def tiny_decoder(seed: int = 0, **changes) -> Decoder:
    sizes = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4)
    rest = dict(num_kv_heads=2, head_dim=8, max_position_embeddings=48)
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig(**sizes | rest | changes)).double().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 1.0 if name.endswith("embed_tokens.weight") else 0.3)
    return model


def tiny_block_decoder(seed: int = 0, **changes) -> BlockDecoder:
    model = BlockDecoder(tiny_decoder(seed, **changes), AdapterConfig(rank=3, alpha=6, num_masks=3), seed)
    torch.manual_seed(seed + 1)
    for parameter in model.adapters().values():
        parameter.data.normal_(0, 0.5)
    return model.requires_grad_(False)


PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8, 7, 6, 5, 4, 3]]
