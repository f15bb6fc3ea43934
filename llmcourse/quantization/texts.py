"""Text of the three domains with nothing to download: to calibrate on, and to measure by.

Code is the standard library of the running Python. Prose and verse are what a model writes behind openings
that it knows: drawn from its own distribution at temperature 1, so that it is surprised by them as much as it
is uncertain. All openings and modules are shared out between the two uses, and none is in both.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer
from llmcourse.decoding.loop import generate
from llmcourse.decoding.params import SamplingParams
from llmcourse.model import Decoder
from llmcourse.progress import bar
from llmcourse.prompts import CODE_MODULES, PROSE, VERSE
from llmcourse.quantization.calibration import check_texts, windows
from llmcourse.tokenizer import Tokenizer

Use = Literal["calibrate", "measure"]
MODULE_CHARS = 20_000  # of a file: the longest ones are no better text than the others
POEMS = 3  # behind each opening of verse: they are short
SEED = 5


def texts_at_hand(
    writer: Decoder,
    tokenizer: Tokenizer,
    use: Use,
    *,
    num_tokens: int = 256,
    seed: int = SEED,
    progress: bool = True,
) -> dict[str, list[str]]:
    """Texts of prose, verse and code.

    Args:
        writer: of prose and verse. For models to be compared on the same text, one writes for all.
        use: which half.
        num_tokens: that are written behind an opening, at most; what ends sooner stays short.
        seed: of what is written.
        progress: show a bar.

    Raises:
        ValueError: another use, or no token.
    """
    require(use in ("calibrate", "measure"), "use", "'calibrate' or 'measure'", repr(use), "choose one")
    require_integer(1, "num_tokens", num_tokens, "256 are a page")
    half = slice(use == "measure", None, 2)
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    code = [(stdlib / name).read_text(encoding="utf-8")[:MODULE_CHARS] for name in CODE_MODULES[half]]
    openings = {"prose": PROSE[half], "verse": VERSE[half] * POEMS}
    todo = bar(openings.items(), "writing texts", unit="domain", shown=progress)
    texts = {name: written(writer, tokenizer, each, num_tokens, seed) for name, each in todo}
    return texts | {"code": code}


def written(
    writer: Decoder, tokenizer: Tokenizer, openings: Sequence[str], num_tokens: int, seed: int
) -> list[str]:
    """The openings, each with what the writer draws behind it."""
    generators = [torch.Generator().manual_seed(seed * 1000 + row) for row in range(len(openings))]
    generations = generate(
        writer,
        [tokenizer.encode_prompt(opening) for opening in openings],
        tokenizer=tokenizer,
        max_new_tokens=num_tokens,
        params=SamplingParams(temperature=1.0),
        generator=generators,
    )
    return [opening + each.text for opening, each in zip(openings, generations, strict=True)]


def token_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> Int[Tensor, " N"]:
    """Texts one behind the other, before each what the makers of the checkpoint put there."""
    check_texts(texts)
    require(len(texts) > 0, "texts", "at least one", "none", "give some text")
    return torch.tensor([token for text in texts for token in tokenizer.encode_prompt(text)])


def calibration_rows(
    model: Decoder, tokenizer: Tokenizer, texts: Sequence[str] = (), *, count: int = 96, length: int = 256
) -> Int[Tensor, "rows length"]:
    """Windows of text for a model to be calibrated on.

    Args:
        texts: to take them from; none stands for those at hand, the three domains in equal parts.
        count: of windows, in all.
        length: of a window, at most the model's context.

    Raises:
        ValueError: texts that do not fill a window.

    Warns:
        CalibrationWarning: texts so short that windows overlap.
    """
    check_texts(texts)
    length = min(length, model.config.max_position_embeddings)
    at_hand = {} if texts else texts_at_hand(model, tokenizer, "calibrate")
    groups = [texts] if texts else list(at_hand.values())
    each = -(-count // len(groups))
    return torch.cat([windows(group, tokenizer, count=each, length=length) for group in groups])
