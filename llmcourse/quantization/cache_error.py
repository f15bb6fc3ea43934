"""What a KV cache in few bits changes: keys and values, what attention makes of them, and the next token.

An error in a key moves the weights of attention, and softmax may make it larger; an error in a value is
averaged with those of all other tokens that are looked at. So keys are what one looks at first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.model import Decoder
from llmcourse.quantization.cache import QuantizedKVCache


@dataclass(frozen=True)
class CacheErrors:
    """What a cache does to one text. Errors are relative, ‖x̃ − x‖² / ‖x‖², one a layer.

    Attributes:
        keys, values: of what is held.
        attention: of its result, before the projection, from the exact queries of this layer.
        from_keys, from_values: of the same, had the keys or the values alone been rounded.
        kl_divergence: of the next token's distribution, KL(exact ‖ with the cache) in nats, a mean over the
            text; here the errors of all layers add up.
        agreement: the share of tokens after which both say the same next token.
    """

    keys: tuple[float, ...]
    values: tuple[float, ...]
    attention: tuple[float, ...]
    from_keys: tuple[float, ...]
    from_values: tuple[float, ...]
    kl_divergence: float
    agreement: float


@torch.no_grad()
def cache_errors(
    model: Decoder, token_ids: Int[Tensor, "B T"], bits: int = 8, symmetric: bool | None = None
) -> CacheErrors:
    """Reads texts without a cache and with one of so many bits.

    Raises:
        ValueError: no tokens, or bits that do not exist.
    """
    rows, length = token_ids.shape
    exact, layers = _without_cache(model, token_ids, bits, symmetric)
    cache = QuantizedKVCache.of(model, rows, length, bits=bits, symmetric=symmetric)
    rounded = model(token_ids, cache).double().log_softmax(-1)
    kl = (exact.exp() * (exact - rounded)).sum(-1).mean().item()
    agreement = (exact.argmax(-1) == rounded.argmax(-1)).double().mean().item()
    return CacheErrors(*map(tuple, zip(*layers, strict=True)), kl, agreement)


def _without_cache(
    model: Decoder, token_ids: Tensor, bits: int, symmetric: bool | None
) -> tuple[Float[Tensor, "B T V"], list[tuple[float, ...]]]:
    """The logarithms of the next token's probabilities, and five errors for each layer."""
    errors = []

    def compared(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        exact = model.attention(q, k, v, mask)
        rounded_k, rounded_v = _rounded(k, v, bits, symmetric)
        pairs = ((rounded_k, rounded_v), (rounded_k, v), (k, rounded_v))
        mixed = [relative_error(exact, model.attention(q, *pair, mask)) for pair in pairs]
        errors.append((relative_error(k, rounded_k), relative_error(v, rounded_v), *mixed))
        return exact

    x, context = model.begin(token_ids)
    for index, layer in enumerate(model.model.layers):
        x = layer(x, index, context._replace(attention=compared))
    return model.lm_head(model.model.norm(x)).double().log_softmax(-1), errors


def _rounded(k: Tensor, v: Tensor, bits: int, symmetric: bool | None) -> tuple[Tensor, Tensor]:
    """As a cache of one layer would hold them."""
    batch, heads, length, size = k.shape
    kind = {"bits": bits, "symmetric": symmetric, "dtype": k.dtype, "device": k.device}
    cache = QuantizedKVCache(1, batch, heads, length, size, **kind)
    positions, _ = cache.reserve(length)
    return cache.write(0, k, v, positions)


def relative_error(x: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> float:
    """‖x̃ − x‖² / ‖x‖²; 0 where both are 0."""
    difference = (other.double() - x.double()).square().sum().item()
    return difference / x.double().square().sum().item() if difference else 0.0
