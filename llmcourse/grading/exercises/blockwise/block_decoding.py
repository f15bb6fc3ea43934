"""04.block_decoding: a block of masks, filled in a number of passes, the surest guesses first."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from llmcourse.grading.compare import Exact
from llmcourse.grading.exercise import Case, Exercise, Mutant, Oracle
from llmcourse.grading.exercises.blockwise.drawn import CLOSE, WIDE, Filler
from llmcourse.grading.exercises.speculative import drawn
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation, OracleCalls

ASKS = r"""
A model that was trained to fill gaps can guess several tokens at once, only less well than one by one: no
guess knows the others. **Block decoding** has a dial for that. The text grows block by block, each of $n$
tokens and in $T$ passes; more passes let later guesses see earlier ones. With $n = 1$ it is autoregressive
decoding, with all of the text as one block it is non-autoregressive (chapter 4,
*One dial from autoregressive to non-autoregressive*; Chang et al. 2022, section 3.2).

> 1. a block begins as $n$ masks;<br>
> 2. in pass $t = 1, \dots, T$ the model reads the text and the block and guesses every place:<br>
> &emsp; the likeliest token there, whose probability, unrounded, is the **confidence**;<br>
> 3. of the places that are still masked, those with the most confident guesses are filled, until<br>
> &emsp; $\lceil n\,t / T \rceil$ places of the block are. What is filled is never touched again;<br>
> 4. after the last pass the block is full, and belongs to the text.

Write `block_decoding(logits_of, prompt, block_size, passes, max_new_tokens, mask)`.

- `logits_of`: a function, one forward pass. `logits_of(text, block)` takes two lists of token ids, all text
  before the block and the block with `mask` at its open places, and returns a `float32` tensor of shape
  `(N, V)`: the logits at each of the $N$ places of the block. `mask` is not one of the $V$ tokens, and no two
  confidences of a pass are equal.
- `prompt`: list of token ids, at least one. `max_new_tokens`: at least 0.
- `block_size`: at least 1. The last block is what is left, if that is less.
- `passes`: at least 1 and at most `block_size`. A shorter last block of $n$ tokens gets as
  many too, but no more than $n$.
- `mask`: the id of the mask.
- returns the **new** tokens, a list of exactly `max_new_tokens` ids.

(The course's own `blockwise` has one thing more: the first place of a block, which the model can guess
without any mask, is always filled by the first pass.)

```python
>>> def logits_of(text, block):                     # surer of its guesses the farther behind they are
...     print("reads", block, "after", text)
...     places = torch.arange(len(block))
...     return torch.nn.functional.one_hot(places + 5, 9) * (3.0 + places[:, None])
>>> block_decoding(logits_of, [1], block_size=3, passes=2, max_new_tokens=4, mask=9)
reads [9, 9, 9] after [1]
reads [9, 6, 7] after [1]
reads [9] after [1, 5, 6, 7]
[5, 6, 7, 5]
```
"""

HINTS = (
    "Three loops, one in the other: over blocks, over passes, and over the places that a pass fills. Before "
    "each pass, the open places are those where the block holds the mask.",
    "confidence, guesses = logits_of(text, block).softmax(-1).max(-1). Sort the open places by their "
    "confidence, the largest first, and fill math.ceil(n * t / passes) less what is filled already.",
    "n = min(block_size, max_new_tokens - len(new)) and turns = min(passes, n) at the start of each block. "
    "After the passes: new += block, and the next block is read after prompt + new.",
)

LEAST = (
    "The least confident guesses were written down, and the sure ones masked again. It is the other way "
    "round."
)
LEFT_TO_RIGHT = "The places were filled from the left. Which of them are filled is for the confidence to say."
BY_LOGIT = (
    "Logits of different places cannot be compared: each place may be shifted as a whole. The confidence "
    "is a probability, after the softmax."
)
REWRITTEN = (
    "What was filled was guessed anew in a later pass. A filled place stands, whatever the model says there "
    "afterwards."
)
FIRST_GUESSES = (
    "All of this is what the first pass guessed. Each pass fills its share alone, and guesses anew what "
    "is still masked, with what was filled in view."
)
WITH_PROMPT = "Only the new tokens are asked for, without the prompt."
EVEN = (
    "The first passes fill one more each, and the later ones one less. After pass t there are ceil(n·t/T) "
    "places filled: count them for the block as a whole, from its beginning."
)
HINTS_AT = {
    "several blocks": "A block that is full belongs to the text: the next one is read after it.",
    "passes that do not divide the block": (
        "After pass t there are ceil(n·t/T) places filled: rounded up, and counted for the block as a whole, "
        "not for each pass alone."
    ),
    "more than three passes": "After pass t there are ceil(n·t/T) places filled, whatever t is.",
    "a long text": "The model reads all of the text before the block, the prompt and what is new.",
    "guesses nearly as sure": "Confidences are compared as they are; nothing is to be rounded.",
    "a short last block": (
        "The last block has only as many places as there are tokens left to write, and gets at most as many "
        "passes."
    ),
    "a last block of more than its passes": (
        "A last block of n tokens, shorter than the others, is filled as they are: in T passes, or in n if "
        "that is less, and after pass t it has ceil(n·t/T) places filled."
    ),
    "a text shorter than a block": (
        "All there is to write may be less than a block: the last block is the first one then, and gets T "
        "passes, or as many as it has places."
    ),
    "blocks of one": "A block of one has one place and one pass: the likeliest token behind the text.",
    "no new tokens": "With max_new_tokens = 0 nothing is read.",
    "forward passes": (
        "One call a pass: T for a block, and for a shorter one no more than it has places. When the block is "
        "full, it is not read once more."
    ),
}


def block_decoding(
    logits_of: Callable, prompt: list[int], block_size: int, passes: int, max_new_tokens: int, mask: int
) -> list[int]:
    """Block after block, each filled in several passes."""
    return Fill()(logits_of, prompt, block_size, passes, max_new_tokens, mask)


def probability(logits: Tensor) -> Tensor:
    """Of the guess at each place."""
    return logits.softmax(-1).amax(-1)


def surest(confidence: list[float], place: int) -> float:
    """What is least for the place to be filled first."""
    return -confidence[place]


def filled_after(size: int, turn: int, passes: int) -> int:
    """How many places are filled after a pass, from 1."""
    return math.ceil(size * turn / passes)


@dataclass(frozen=True)
class Fill:
    """The loops; the fields are what mutants get wrong.

    Args:
        confidence: at each place.
        first: which place is filled first.
        filled: how many are after a pass.
        rewrites: whether filled places are written again.
        sees: the text before a block, of the prompt and what is new.
        shortens: whether the last block is what is left.
        turns: passes over a block, by its size, that of a full one, and the passes over that.
        extra: passes over a full block.
    """

    confidence: Callable = probability
    first: Callable = surest
    filled: Callable = filled_after
    rewrites: bool = False
    sees: Callable = lambda prompt, new: prompt + new
    shortens: bool = True
    turns: Callable = lambda size, full, passes: min(passes, size)
    extra: int = 0

    def __call__(self, logits_of, prompt, block_size, passes, max_new_tokens, mask):
        new = []
        while len(new) < max_new_tokens:
            size = min(block_size, max_new_tokens - len(new)) if self.shortens else block_size
            text, block = self.sees(list(prompt), new), [mask] * size
            turns = self.turns(size, block_size, passes)
            for turn in range(1, turns + 1):
                self._refine(logits_of(list(text), list(block)), block, self.filled(size, turn, turns), mask)
            for _ in range(self.extra):
                logits_of(list(text), list(block))
            new += block
        return new

    def _refine(self, logits, block, filled, mask):
        confidence, guesses = self.confidence(logits).tolist(), logits.argmax(-1).tolist()
        open_places = [place for place, token in enumerate(block) if token == mask]
        order = sorted(open_places, key=lambda place: self.first(confidence, place))
        count = filled - (len(block) - len(open_places))
        for place in range(len(block)):
            if place in order[:count] or (self.rewrites and place not in open_places):
                block[place] = guesses[place]


def cases(rng: random.Random) -> list[Case]:
    def case(label, block_size, passes, max_new_tokens, wrong=(), apart=(), **model):
        draw = partial(_arguments, rng, vocab, block_size, passes, max_new_tokens, **model)
        arguments = drawn.telling(draw, block_decoding, wrong, apart)
        shown = Oracle("logits_of", "a function; guesses every place of a block")
        oracles = {"logits_of": arguments["logits_of"]}
        return Case({**arguments, "logits_of": shown}, label, oracles)

    vocab, size = rng.randint(7, 9), rng.randint(3, 5)
    many = rng.choice([(6, 4), (7, 5), (8, 5)])
    return [
        case("one block", 6, rng.choice([2, 3]), 6, DOUBTED, TOLD),
        case("several blocks", 4, 2, 12, (_prompt_alone,)),
        case("passes that do not divide the block", 7, 3, 7, (_rounds_down, _leaves_masks)),
        case("more than three passes", *many, many[0], (_shares_the_rest, _rest_first)),
        case("a short last block", 6, 3, 8, (_whole_last_block, _cuts_the_last_block)),
        case("a last block of more than its passes", 6, 3, 6 + rng.randint(4, 5), (_one_a_pass, _in_two)),
        case("a text shorter than a block", 7, 2, rng.randint(4, 6), (_one_a_pass, _in_three)),
        case("a long text", 4, 2, 8, (_last_64, _last_128), prompt=range(140, 160)),
        case("guesses nearly as sure", 6, 3, 6, (_two_digits, _three_digits), step=CLOSE),
        case("blocks of one", 1, 1, size, (_masks_the_last,)),
        case("the whole text at once", size, 1, size),
        case("no new tokens", size, 2, 0),
    ]


def _arguments(rng, vocab, block_size, passes, max_new_tokens, prompt=range(2, 5), step=WIDE):
    """Of a call, with a prompt of one of these lengths."""
    tokens = [rng.randrange(vocab) for _ in range(rng.choice(prompt))]
    model = Filler(rng.getrandbits(48), vocab, step)
    arguments = {"logits_of": model, "prompt": tokens, "block_size": block_size, "passes": passes}
    return arguments | {"max_new_tokens": max_new_tokens, "mask": vocab}


_least = Fill(first=lambda confidence, place: confidence[place])
_left_to_right = Fill(first=lambda confidence, place: place)
_by_logit = Fill(confidence=lambda logits: logits.amax(-1))
_by_entropy = Fill(confidence=lambda logits: (logits.softmax(-1) * logits.log_softmax(-1)).sum(-1))
_by_lead = Fill(confidence=lambda logits: -logits.softmax(-1).topk(2).values.diff()[..., 0])
_by_squares = Fill(confidence=lambda logits: logits.softmax(-1).square().sum(-1))
_by_height = Fill(confidence=lambda logits: logits.amax(-1) - logits.mean(-1))
_rewritten = Fill(rewrites=True)
_one_pass = Fill(filled=lambda size, turn, passes: size)
_prompt_alone = Fill(sees=lambda prompt, new: prompt)
_rounds_down = Fill(filled=lambda size, turn, passes: size * turn // passes)
_leaves_masks = Fill(filled=lambda size, turn, passes: size // passes * turn)
_shares_the_rest = Fill(filled=lambda size, turn, passes: _by_shares(size, turn, passes))
_rest_first = Fill(filled=lambda size, turn, passes: size // passes * turn + min(turn, size % passes))
_last_64 = Fill(sees=lambda prompt, new: (prompt + new)[-64:])
_last_128 = Fill(sees=lambda prompt, new: (prompt + new)[-128:])
_two_digits = Fill(confidence=lambda logits: probability(logits).round(decimals=2))
_three_digits = Fill(confidence=lambda logits: probability(logits).round(decimals=3))
_whole_last_block = Fill(shortens=False)
_as_many_passes = Fill(turns=lambda size, full, passes: passes)
_one_a_pass = Fill(turns=lambda size, full, passes: passes if size == full else size)
_in_two = Fill(turns=lambda size, full, passes: passes if size == full else min(2, size))
_in_three = Fill(turns=lambda size, full, passes: passes if size == full else min(3, size))
_once_more = Fill(extra=1)


def _by_shares(size, turn, passes):
    """Each pass fills its share of what is open, rounded up."""
    still_open = size
    for number in range(turn):
        still_open -= math.ceil(still_open / (passes - number))
    return size - still_open


def _cuts_the_last_block(logits_of, prompt, block_size, passes, max_new_tokens, mask):
    """The last block is filled whole, and what is too much is cut off."""
    new = _whole_last_block(logits_of, prompt, block_size, passes, max_new_tokens, mask)
    return new[:max_new_tokens]


def _first_guesses(logits_of, prompt, block_size, passes, max_new_tokens, mask):
    """Asks in each pass, and writes down what the first had guessed, the surest first."""
    first = {}

    def as_at_first(text, block):
        said = logits_of(text, block)
        return first.setdefault(tuple(text), said)

    return block_decoding(as_at_first, prompt, block_size, passes, max_new_tokens, mask)


def _masks_the_last(logits_of, prompt, block_size, passes, max_new_tokens, mask):
    """Blocks of one are read as an autoregressive model reads: the last token instead of a mask."""
    if block_size > 1:
        return block_decoding(logits_of, prompt, block_size, passes, max_new_tokens, mask)
    text = list(prompt)
    for _ in range(max_new_tokens):
        text.append(int(logits_of(text[:-1], text[-1:])[-1].argmax()))
    return text[len(prompt) :]


def _at_least_a_block(logits_of, prompt, block_size, passes, max_new_tokens, mask):
    if max_new_tokens:
        return block_decoding(logits_of, prompt, block_size, passes, max_new_tokens, mask)
    return block_decoding(logits_of, prompt, block_size, passes, block_size, mask)


def _needs_a_full_block(logits_of, prompt, block_size, passes, max_new_tokens, mask):
    if 0 < max_new_tokens < block_size:
        raise ValueError("the text must have a block at least")
    return block_decoding(logits_of, prompt, block_size, passes, max_new_tokens, mask)


def _with_prompt(logits_of, prompt, block_size, passes, max_new_tokens, mask):
    return prompt + block_decoding(logits_of, prompt, block_size, passes, max_new_tokens, mask)


def _grows_the_prompt(logits_of, prompt, block_size, passes, max_new_tokens, mask):
    new = block_decoding(logits_of, prompt, block_size, passes, max_new_tokens, mask)
    prompt += new
    return new


TOLD = (_least, _left_to_right, _by_logit, _rewritten, _one_pass, _with_prompt)
DOUBTED = (_by_entropy, _by_lead, _by_squares, _by_height)
PASSES = OracleCalls("logits_of", name="forward passes")

EXERCISE = Exercise(
    name="04.block_decoding",
    function="block_decoding",
    title="A block in several passes",
    points=9,
    minutes=25,
    level=4,
    asks=ASKS,
    signature="block_decoding(logits_of, prompt, block_size, passes, max_new_tokens, mask)",
    cases=cases,
    reference=block_decoding,
    comparison=Exact("token"),
    rules=(PASSES, NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("masks the sure guesses again", _least, "one block", LEAST),
        Mutant("fills from left to right", _left_to_right, "one block", LEFT_TO_RIGHT),
        Mutant("compares logits", _by_logit, "one block", BY_LOGIT),
        Mutant("compares entropies", _by_entropy, "one block"),
        Mutant("compares leads over the second choice", _by_lead, "one block"),
        Mutant("compares sums of squares", _by_squares, "one block"),
        Mutant("compares heights above the mean", _by_height, "one block"),
        Mutant("guesses filled places anew", _rewritten, "one block", REWRITTEN),
        Mutant("fills all in the first pass", _one_pass, "one block", FIRST_GUESSES),
        Mutant("keeps the first guesses", _first_guesses, "one block", FIRST_GUESSES),
        Mutant("returns the prompt as well", _with_prompt, "one block", WITH_PROMPT),
        Mutant("forgets the blocks before", _prompt_alone, "several blocks"),
        Mutant("rounds down", _rounds_down, "passes that do not divide the block"),
        Mutant("leaves masks", _leaves_masks, "passes that do not divide the block"),
        Mutant("fills a share of what is open", _shares_the_rest, "more than three passes", EVEN),
        Mutant("fills what does not divide first", _rest_first, "more than three passes", EVEN),
        Mutant("writes a whole last block", _whole_last_block, "a short last block"),
        Mutant("cuts the last block", _cuts_the_last_block, "a short last block"),
        Mutant("fills a short block one by one", _one_a_pass, "a last block of more than its passes"),
        Mutant("fills a short block in two passes", _in_two, "a last block of more than its passes"),
        Mutant("fills a short block in three passes", _in_three, "a text shorter than a block"),
        Mutant("needs a full block", _needs_a_full_block, "a text shorter than a block"),
        Mutant("reads the last 64 tokens", _last_64, "a long text"),
        Mutant("reads the last 128 tokens", _last_128, "a long text"),
        Mutant("rounds to two digits", _two_digits, "guesses nearly as sure"),
        Mutant("rounds to three digits", _three_digits, "guesses nearly as sure"),
        Mutant("gives a short block all passes", _as_many_passes, PASSES.name),
        Mutant("reads a last token for a block of one", _masks_the_last, "blocks of one"),
        Mutant("always writes a block", _at_least_a_block, "no new tokens"),
        Mutant("reads a full block once more", _once_more, PASSES.name),
        Mutant("grows the prompt", _grows_the_prompt, NoMutation().name),
    ),
)
