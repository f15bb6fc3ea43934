"""What the dial costs: how good the texts are, and how many tokens a forward pass brought.

No number stands alone. Loss under the backbone is low for a text that repeats itself, so diversity stands
beside it; form is what a program can check, code that parses and verse whose lines match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch

from llmcourse.blockwise.adapters import BlockDecoder
from llmcourse.blockwise.decode import stream
from llmcourse.blockwise.refinement import Refinement
from llmcourse.decoding.errors import require
from llmcourse.decoding.form import parsed_share, regular_share
from llmcourse.decoding.metrics import distinct_n
from llmcourse.decoding.reread import reread
from llmcourse.decoding.rows import Generation
from llmcourse.tokenizer import Tokenizer

Form = Literal["code", "verse"]


@dataclass(frozen=True)
class Quality:
    """One setting of both dials, measured.

    Attributes:
        domain: of the prompts.
        block_size, passes: the dials.
        refinement: how further passes settle a block.
        nats_per_token: of the new tokens under the backbone, each given all before it.
        distinct_2: share of different pairs among those of all texts, in [0, 1].
        form: share of lines that parse or of verses that match, in [0, 1]; None for prose.
        tokens_per_pass: new tokens a forward pass, mean over rows; what a block holds past the end of a text
            does not count.
    """

    domain: str
    block_size: int
    passes: int
    refinement: Refinement
    nats_per_token: float
    distinct_2: float
    form: float | None
    tokens_per_pass: float


def measure(
    model: BlockDecoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    domain: str,
    *,
    block_size: int,
    passes: int = 1,
    form: Form | None = None,
    refinement: Refinement = "unmask",
    max_new_tokens: int = 64,
    temperature: int | float = 0,
    seed: int = 0,
) -> Quality:
    """Texts that continue the prompts with these settings, measured.

    Args:
        prompts: texts of one domain, at least one.
        form: what kind of form the domain has, if any.

    Raises:
        ValueError: an argument out of range; see `decode.stream`.
    """
    require(form in (None, "code", "verse"), "form", "'code', 'verse' or None", repr(form), "use None")
    token_ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    generator = torch.Generator().manual_seed(seed) if temperature else None
    dials = {"block_size": block_size, "passes": passes, "refinement": refinement}
    limits = {"max_new_tokens": max_new_tokens, "temperature": temperature, "generator": generator}
    steps = stream(model, token_ids, tokenizer=tokenizer, **dials, **limits)
    generations, num_passes = _run(steps, len(prompts))
    rates = [len(g.tokens) / count for g, count in zip(generations, num_passes, strict=True)]
    written = [generation.tokens for generation in generations]
    texts = [prompt + generation.text for prompt, generation in zip(prompts, generations, strict=True)]
    check = {"code": parsed_share, "verse": regular_share, None: None}[form]
    return Quality(
        domain=domain,
        **dials,
        nats_per_token=-reread(model.backbone, token_ids, written).log_probability,
        distinct_2=distinct_n(written, 2),
        form=fmean(map(check, texts)) if check else None,
        tokens_per_pass=fmean(rates),
    )


def _run(steps, num_rows: int) -> tuple[list[Generation], list[int]]:
    """What a stream returns, and how many passes each row took part in."""
    counts = [0] * num_rows
    while True:
        try:
            active = next(steps).active
        except StopIteration as end:
            return end.value, counts
        counts = [count + row for count, row in zip(counts, active, strict=True)]
