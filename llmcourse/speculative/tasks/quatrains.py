"""Close a Chinese quatrain: a fourth line of the right length that rhymes with the second on a level tone.

The third line is left unrhymed and the fourth rhymes with the second, on a level tone, in nearly all
regulated quatrains (绝句). No poem is stored here: a model writes the openings, three lines of five or seven
characters each, and any model may close them. Everything that is asked for can be seen in the answer, so
here a judge could look it up; one that may not has to guess from the probabilities.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from llmcourse.decoding.errors import require_integer
from llmcourse.decoding.loop import generate
from llmcourse.decoding.params import SamplingParams
from llmcourse.model import Decoder
from llmcourse.speculative.tasks.rhyme import is_level, rhymes
from llmcourse.tokenizer import Tokenizer

LINE = r"([^\s，。？！、；：《》]{5}|[^\s，。？！、；：《》]{7})"
OPENING = re.compile(rf"《[^\n》]{{1,16}}》[^\n]{{1,6}}\n{LINE}[，？！]{LINE}[。？！]\n{LINE}[，？！]")
TOP_P = 0.9  # of the openings: fewer odd ones than from the whole distribution
CLOSE = re.compile(r"([^\s，。？！、；：《》]+)[。？！]")


@dataclass(frozen=True)
class Quatrain:
    """Three lines of a poem, the fourth to be written; see `question.Question`.

    Attributes:
        lines: without marks.
    """

    document: str
    prompt: tuple[int, ...]
    lines: tuple[str, str, str]

    def correct(self, text: str) -> bool:
        last = _line(text)
        return self._fits(last) and rhymes(last[-1], self.lines[1][-1]) and bool(is_level(last[-1]))

    def observed(self, text: str) -> tuple[float, ...]:
        """Whether the line has its length. Rhyme and tone are what a judge here has to guess."""
        return (float(self._fits(_line(text))),)

    def _fits(self, line: str | None) -> bool:
        return line is not None and len(line) == len(self.lines[0])


def _line(text: str) -> str | None:
    found = CLOSE.match(text.strip())
    return found and found[1]


def quatrains(openings: Iterable[str], tokenizer: Tokenizer) -> list[Quatrain]:
    """A question for each opening that is one: `《title》author`, two lines, and a third up to its comma.

    What follows in the text is dropped, and so are openings whose lines differ in length, or whose second
    does not end on a level tone that `rhyme` knows. A poem is known by its title and author.
    """
    found = []
    for text in openings:
        opening = OPENING.match(text)
        if opening and len(set(map(len, opening.groups()))) == 1 and is_level(opening[2][-1]):
            title = text.split("\n", 1)[0]
            found.append(Quatrain(title, tuple(tokenizer.encode_prompt(opening[0])), opening.groups()))
    return found


def write_openings(
    model: Decoder,
    tokenizer: Tokenizer,
    count: int,
    *,
    seed: int = 0,
    batch: int = 128,
    max_new_tokens: int = 56,
) -> list[str]:
    """Beginnings of poems as the model writes them, `batch` at a time; half of `base`'s are quatrains.

    Raises:
        ValueError: a number that is no integer or below 1.
    """
    require_integer(1, "count", count, "ask for one opening or more")
    require_integer(1, "batch", batch, "write one opening or more at a time")
    generator = torch.Generator().manual_seed(seed)
    params = SamplingParams(top_p=TOP_P)
    texts: list[str] = []
    while len(texts) < count:
        prompts: Sequence[Sequence[int]] = [tokenizer.encode_prompt("《")] * min(batch, count - len(texts))
        written = generate(
            model,
            prompts,
            tokenizer=tokenizer,
            max_new_tokens=max_new_tokens,
            params=params,
            generator=generator,
        )
        texts += [f"《{generation.text}" for generation in written]
    return texts
