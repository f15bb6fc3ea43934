"""What quantization costs: how far a model's distributions move, domain by domain.

Three numbers, since each is blind to something. Perplexity, e to the mean of −ln p(token), may even fall by
chance. KL(16-bit ‖ quantized) sees every token's whole distribution, and cannot:

    KL = Σ_v p(v) ln (p(v) / q(v)) ≥ 0

Greedy agreement is the share of places where both like the same token best, which is what greedy decoding
would notice. Tokens of one text depend on each other; so all spreads are taken over windows, not over tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer
from llmcourse.decoding.estimate import Estimate, windows_of
from llmcourse.model import Decoder


@dataclass(frozen=True)
class Quality:
    """A quantized model beside the one that it was made of, on one domain's text.

    Attributes:
        domain: its name.
        num_tokens: that were predicted.
        nats: per token under the quantized model, −ln q.
        reference_nats: the same under the other, −ln p.
        rise: of the first over the second, in nats per token; taken window by window, so that what is hard
            for both does not widen its error.
        kl: KL(p ‖ q), in nats per token.
        agreement: share of places with the same likeliest token, in [0, 1].
    """

    domain: str
    num_tokens: int
    nats: Estimate
    reference_nats: Estimate
    rise: Estimate
    kl: Estimate
    agreement: Estimate

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats.mean)

    @property
    def reference_perplexity(self) -> float:
        return math.exp(self.reference_nats.mean)

    def __str__(self) -> str:
        return (
            f"{self.domain}: perplexity {self.reference_perplexity:.2f} → {self.perplexity:.2f}, "
            f"KL {self.kl}, the same favourite {self.agreement.mean:.1%} ± {self.agreement.error:.1%}"
        )


class Moved(NamedTuple):
    """What each place of a window shows."""

    nats: Float[Tensor, " T"]
    reference_nats: Float[Tensor, " T"]
    kl: Float[Tensor, " T"]
    agreement: Float[Tensor, " T"]


@torch.inference_mode()
def compare(
    reference: Decoder,
    quantized: Decoder,
    streams: Mapping[str, Int[Tensor, " _"]],
    *,
    length: int = 256,
    max_windows: int | None = None,
) -> list[Quality]:
    """Both models on the same windows of each domain's tokens.

    Args:
        reference: the model in 16 bits or more.
        quantized: made of it.
        streams: tokens by the domain's name, as `texts.token_stream` gives them.
        length: tokens that are predicted in a window, each from those before it in the window alone. What is
            left at the end of a stream and fills none is not looked at.
        max_windows: of a domain, the first ones; None for all.

    Raises:
        ValueError: models of different vocabularies, no domain, a length out of range, or a domain that does
            not fill two windows, of which there would be no spread.
    """
    sizes = (reference.config.vocab_size, quantized.config.vocab_size)
    require(sizes[0] == sizes[1], "quantized", f"of {sizes[0]} tokens", sizes[1], "compare it to its own")
    most = reference.config.max_position_embeddings
    require_integer(1, "length", length, "256 are a page")
    require(length <= most, "length", f"in [1, {most}], the model's context", length, "take fewer")
    require(len(streams) > 0, "streams", "of one domain at least", "none", "give some text")
    if max_windows is not None:
        require_integer(2, "max_windows", max_windows, "one window has no spread")
    windows = {domain: windows_of(domain, stream, length) for domain, stream in streams.items()}
    return [_measured(reference, quantized, domain, each[:max_windows]) for domain, each in windows.items()]


def _measured(reference: Decoder, quantized: Decoder, domain: str, windows: list[Tensor]) -> Quality:
    means = []
    for window in windows:  # one by one: logits are what takes memory
        moved = move(_logits(reference, window), _logits(quantized, window), window[1:])
        means.append(torch.stack([each.double().mean() for each in moved]).cpu())
    nats, reference_nats, kl, agreement = torch.stack(means, dim=1)
    return Quality(
        domain=domain,
        num_tokens=sum(len(window) - 1 for window in windows),
        nats=Estimate.of(nats),
        reference_nats=Estimate.of(reference_nats),
        rise=Estimate.of(nats - reference_nats),
        kl=Estimate.of(kl),
        agreement=Estimate.of(agreement),
    )


def _logits(model: Decoder, window: Int[Tensor, " T_1"]) -> Float[Tensor, "T V"]:
    return model(window[None, :-1].to(model.device))[0]


def move(
    reference: Float[Tensor, "T V"], quantized: Float[Tensor, "T V"], tokens: Int[Tensor, " T"]
) -> Moved:
    """From the logits of both models, and the tokens that followed."""
    log_p, log_q = reference.float().log_softmax(-1), quantized.to(reference.device).float().log_softmax(-1)
    tokens = tokens.to(log_p.device)[:, None]
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    same = log_p.argmax(-1) == log_q.argmax(-1)
    return Moved(-log_q.gather(1, tokens)[:, 0], -log_p.gather(1, tokens)[:, 0], kl, same.float())
