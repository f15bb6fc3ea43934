"""04.block_decoding: a block of masks, filled in a number of passes, the surest guesses first."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Exact
from llmcourse.grading.exercise import Case, Exercise, Mutant, Oracle
from llmcourse.grading.exercises.inputs import LONGEST_TEXT
from llmcourse.grading.exercises.speculative import drawn
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation, OracleCalls

PERMILLES = range(330, 696, 6)  # of confidence: no two places of a block are as sure
SECOND = 0.8  # what a near second choice has of the most that it could

ASKS = r"""
A model that was trained to fill gaps can guess several tokens at once, only less well than one by one: no
guess knows the others. **Block decoding** has a dial for that. The text grows block by block, each of $n$
tokens and in $T$ passes; more passes let later guesses see earlier ones. With $n = 1$ it is autoregressive
decoding, with all of the text as one block it is non-autoregressive (chapter 4,
*One dial from autoregressive to non-autoregressive*; Chang et al. 2022, section 3.2).

> 1. a block begins as $n$ masks;<br>
> 2. in pass $t = 1, \dots, T$ the model reads the text and the block and guesses every place:<br>
> &emsp; the likeliest token there, whose probability is the **confidence**;<br>
> 3. of the places that are still masked, those with the most confident guesses are filled, until<br>
> &emsp; $\lceil n\,t / T \rceil$ places of the block are. What is filled is never touched again;<br>
> 4. after the last pass the block is full, and belongs to the text.

Write `block_decoding(logits_of, prompt, block_size, passes, max_new_tokens, mask)`.

- `logits_of`: a function, one forward pass. `logits_of(text, block)` takes two lists of token ids, the text
  before the block and the block with `mask` at its open places, and returns a `float32` tensor of shape
  `(N, V)`: the logits at each of the $N$ places of the block. `mask` is not one of the $V$ tokens.
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
HINTS_AT = {
    "several blocks": "A block that is full belongs to the text: the next one is read after it.",
    "passes that do not divide the block": (
        "After pass t there are ceil(n·t/T) places filled: rounded up, and counted for the block as a whole, "
        "not for each pass alone."
    ),
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


@dataclass(frozen=True)
class Filler:
    """A model that fills gaps, of random numbers: text and block decide, no two places are as confident."""

    seed: int
    vocab: int

    def __call__(self, text: object, block: object) -> Float[Tensor, "N V"]:
        """The logits at each place of a block.

        Raises:
            TypeError: what are no lists of ints.
            ValueError: an empty text or block, one that is far too long, or an id that is no token nor, in
                the block, the mask.
        """
        self._check(text, "text", self.vocab, LONGEST_TEXT)
        self._check(block, "block", self.vocab + 1, len(PERMILLES))
        return torch.tensor(_guesses(self, tuple(text), tuple(block)), dtype=torch.float32)

    def _check(self, tokens: object, name: str, end: int, longest: int) -> None:
        if type(tokens) not in (list, tuple) or any(type(token) is not int for token in tokens):
            raise TypeError(f"logits_of must be given a {name} that is a list of token ids, each an int")
        if not 1 <= len(tokens) <= longest:
            raise ValueError(f"logits_of must be given a {name} of 1 to {longest} ids, got {len(tokens)}")
        if not all(0 <= token < end for token in tokens):
            raise ValueError(f"logits_of must be given a {name} of ids in [0, {end}), got {tokens[:10]}")


@lru_cache(maxsize=4096)
def _guesses(model: Filler, text: tuple[int, ...], block: tuple[int, ...]) -> list[list[float]]:
    rng = random.Random(f"{model.seed} {text} {block}")
    rows = []
    for permille in rng.sample(PERMILLES, len(block)):
        favourite, confidence = rng.randrange(model.vocab), permille / 1000
        rest = iter(_rest(rng, confidence, model.vocab - 1))
        shift = rng.uniform(-3.0, 3.0)  # which says nothing: a softmax does not see it
        row = [confidence if token == favourite else next(rest) for token in range(model.vocab)]
        rows.append([math.log(p) + shift for p in row])
    return rows


def _rest(rng: random.Random, confidence: float, count: int) -> list[float]:
    """What the other tokens have, all less than the likeliest: much alike, or most of it one's.

    So places are surer than others that have less entropy, or a longer lead over the second choice.
    """
    nearest = SECOND * min(confidence, 1 - confidence)
    second = rng.choice([(1 - confidence) / count, nearest])
    shares = [rng.uniform(0.7, 1.3) for _ in range(count - 1)]
    rest = [(1 - confidence - second) * share / sum(shares) for share in shares]
    rest.insert(rng.randrange(count), second)
    return rest


def cases(rng: random.Random) -> list[Case]:
    vocab = rng.randint(7, 9)

    def case(label, block_size, passes, max_new_tokens, wrong=(), apart=()):
        def draw():
            model = Filler(rng.getrandbits(48), vocab)
            prompt = [rng.randrange(vocab) for _ in range(rng.randint(2, 4))]
            arguments = {"logits_of": model, "prompt": prompt, "block_size": block_size, "passes": passes}
            return arguments | {"max_new_tokens": max_new_tokens, "mask": vocab}

        arguments = drawn.telling(draw, block_decoding, wrong, apart)
        shown = Oracle("logits_of", "a function; guesses every place of a block")
        oracles = {"logits_of": arguments["logits_of"]}
        return Case({**arguments, "logits_of": shown}, label, oracles)

    size = rng.randint(3, 5)
    return [
        case("one block", 6, rng.choice([2, 3]), 6, DOUBTED, TOLD),
        case("several blocks", 4, 2, 12, (_prompt_alone,)),
        case("passes that do not divide the block", 7, 3, 7, (_rounds_down, _leaves_masks)),
        case("a short last block", 6, 3, 8, (_whole_last_block, _cuts_the_last_block)),
        case("a last block of more than its passes", 6, 3, 6 + rng.randint(4, 5), (_one_a_pass, _in_two)),
        case("a text shorter than a block", 7, 2, rng.randint(4, 6), (_one_a_pass, _in_three)),
        case("blocks of one", 1, 1, size, (_masks_the_last,)),
        case("the whole text at once", size, 1, size),
        case("no new tokens", size, 2, 0),
    ]


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
_whole_last_block = Fill(shortens=False)
_as_many_passes = Fill(turns=lambda size, full, passes: passes)
_one_a_pass = Fill(turns=lambda size, full, passes: passes if size == full else size)
_in_two = Fill(turns=lambda size, full, passes: passes if size == full else min(2, size))
_in_three = Fill(turns=lambda size, full, passes: passes if size == full else min(3, size))
_once_more = Fill(extra=1)


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


TOLD = (_least, _left_to_right, _by_logit, _rewritten, _one_pass)
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
        Mutant("returns the prompt as well", _with_prompt, "one block"),
        Mutant("forgets the blocks before", _prompt_alone, "several blocks"),
        Mutant("rounds down", _rounds_down, "passes that do not divide the block"),
        Mutant("leaves masks", _leaves_masks, "passes that do not divide the block"),
        Mutant("writes a whole last block", _whole_last_block, "a short last block"),
        Mutant("cuts the last block", _cuts_the_last_block, "a short last block"),
        Mutant("fills a short block one by one", _one_a_pass, "a last block of more than its passes"),
        Mutant("fills a short block in two passes", _in_two, "a last block of more than its passes"),
        Mutant("fills a short block in three passes", _in_three, "a text shorter than a block"),
        Mutant("needs a full block", _needs_a_full_block, "a text shorter than a block"),
        Mutant("gives a short block all passes", _as_many_passes, PASSES.name),
        Mutant("reads a last token for a block of one", _masks_the_last, "blocks of one"),
        Mutant("always writes a block", _at_least_a_block, "no new tokens"),
        Mutant("reads a full block once more", _once_more, PASSES.name),
        Mutant("grows the prompt", _grows_the_prompt, NoMutation().name),
    ),
)
