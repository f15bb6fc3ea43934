"""02.cached_loop: the lecture's algorithm, in which every token is read exactly once."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Exact
from llmcourse.grading.exercise import Case, Exercise, Mutant, Oracle
from llmcourse.grading.exercises import inputs
from llmcourse.grading.exercises.kv_cache.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation, OracleCalls

ASKS = r"""
Greedy decoding again, now with a model that remembers. It is the lecture's algorithm, but that a long prompt
is read in pieces of at most $n$ tokens (*chunked prefill*), so that no step takes too long:

> **for** each chunk $c$ of the prompt: $l, K, V = \mathcal{M}(c, K, V)$ &emsp; *(prefill)*<br>
> **repeat** $u' = \arg\max_v l_v$, which is written;<br>
> &emsp; **stop** if $u'$ is the end token, or as many new tokens are written as are allowed;<br>
> &emsp; $l, K, V = \mathcal{M}(u', K, V)$ &emsp; *(one decoding step)*

Write `cached_loop(step, prompt, chunk, max_new_tokens, end_token)`.

- `step`: the model, a function. `step(tokens, cache)` reads the next tokens of the text, a list of 1 to
  `chunk` ids, and returns two things: the logits of the token that follows them, a tensor of shape `(V,)`,
  and the cache, which now holds them too. The first time, `cache` is `None`; from then on it is what the
  last step returned. What is inside of it is the model's affair.
- `prompt`: list of token ids, at least one. `chunk`: $n \ge 1$. All chunks have `chunk` tokens, but the last,
  which has what is left.
- `max_new_tokens`: an integer, at least 0. With 0 nothing is written, and the prompt is not read either.
- `end_token`: a token id.
- returns the **new** tokens, a list of `int`; the end token, if it came, is the last of them.

Of equally probable tokens take the one with the lowest id. No token is read twice, and none whose logits
nobody uses: the last new token is written, but not read; so the box stops before it reads.

```python
>>> def step(tokens, cache):            # a model that counts; all it remembers is how much it has read
...     print("reads", tokens, "after", cache or 0)
...     return -(torch.arange(10) - tokens[-1] - 1.0).abs(), (cache or 0) + len(tokens)
>>> cached_loop(step, [2, 3, 4], chunk=2, max_new_tokens=3, end_token=9)
reads [2, 3] after 0
reads [4] after 2
reads [5] after 3
reads [6] after 4
[5, 6, 7]
```
"""

HINTS = (
    "Two loops, one after the other: the first reads the prompt, the second writes. Each call of step gives "
    "back a cache: the next call, in whichever loop, gets that one.",
    "prompt[start : start + chunk] for start in range(0, len(prompt), chunk): these are the chunks, "
    "the short one included. Of their logits only the last are used: they give the first new token.",
    "In the second loop: choose, append, and see whether the text is done; only if it is not, "
    "logits, cache = step([token], cache). The prompt is in the cache; it is not sent again.",
)

HINTS_AT = {
    "a prompt in chunks": (
        "step takes at most chunk tokens at once, and the later chunks need the cache that the earlier ones "
        "gave back. The last chunk may be shorter; it must not be left out."
    ),
    "whole chunks": "Where the prompt is a multiple of chunk, nothing is left over: no empty chunk is sent.",
    "the short chunk": (
        "Chunks begin at 0, chunk, 2 · chunk and so on, and are as long as that allows: what is left over "
        "is the last chunk, not the first."
    ),
    "two likeliest tokens": "Of equal logits the first counts, the lowest id. What does argmax say, and max?",
    "the end token": (
        "Append first, then compare: the end token is the last one of the new tokens, and nothing comes "
        "after it."
    ),
    "no new tokens allowed": (
        "With max_new_tokens = 0 nothing is written, and nobody needs the prompt to be read: step is not "
        "called at all. Look at max_new_tokens before the first loop."
    ),
    "forward passes": (
        "One call for each chunk of the prompt, and one for each new token but the last. All that was read "
        "once is in the cache."
    ),
}


@dataclass(frozen=True)
class CachedModel:
    """A model of random numbers that reads on from a cache; which is the tokens that it has read.

    Args:
        most: tokens that it reads at once.
        prompt: tokens that it must be given in chunks as long as they can be; 0 for a model that does not
            look at that.
    """

    model: inputs.Model
    most: int
    prompt: int = 0

    def __call__(self, tokens: object, cache: object) -> tuple[Float[Tensor, " V"], Int[Tensor, " S"]]:
        """The logits after the tokens, and the cache that holds them too.

        Raises:
            TypeError: tokens that are no list, or a cache that no step returned.
            ValueError: no tokens, too many, or a chunk of the prompt that is too short.
        """
        if type(tokens) not in (list, tuple):
            raise TypeError("step must be given a list of token ids and the cache")
        if not 1 <= len(tokens) <= self.most:
            raise ValueError(f"step reads 1 to {self.most} tokens at once, got {len(tokens)}")
        before = _read_before(cache)
        whole = min(self.most, self.prompt - len(before))
        if len(tokens) < whole:
            found = f"{len(tokens)} tokens after {len(before)} of a prompt of {self.prompt}"
            raise ValueError(f"step must be given whole chunks, here {whole} tokens, got {found}")
        text = [*before, *tokens]
        return torch.tensor(self.model.values(text), dtype=torch.float32), torch.tensor(text)


def _read_before(cache: object) -> list[int]:
    if cache is None:
        return []
    if type(cache) is not Tensor or cache.dtype != torch.int64 or cache.dim() != 1:
        raise TypeError("step must be given the cache as the last step returned it, or None at first")
    return cache.tolist()


def cached_loop(
    step: Callable, prompt: list[int], chunk: int, max_new_tokens: int, end_token: int
) -> list[int]:
    """Reads the prompt in chunks, then writes and reads token by token."""
    if max_new_tokens == 0:
        return []
    logits, cache = _prefill(step, prompt, chunk)
    new = [int(logits.argmax())]
    while len(new) < max_new_tokens and new[-1] != end_token:
        logits, cache = step(new[-1:], cache)
        new.append(int(logits.argmax()))
    return new


def _prefill(step, prompt, chunk):
    logits = cache = None
    for start in range(0, len(prompt), chunk):
        logits, cache = step(prompt[start : start + chunk], cache)
    return logits, cache


def cases(rng: random.Random) -> list[Case]:
    vocab, end, limit = rng.randint(8, 12), rng.randrange(8), rng.randint(4, 6)
    chunk = rng.randint(3, 4)

    def case(
        label, length, chunk=chunk, ends_after=None, max_new_tokens=limit, whole_chunks=False, tied=False
    ):
        """A text that ends after so many new tokens, the end token included; None for never."""
        prompt = [rng.choice([token for token in range(vocab) if token != end]) for _ in range(length)]
        ended = None if ends_after is None else length + ends_after - 1
        lengths = range(length, length + limit + 2)
        boosts = tuple((read, end, 50.0 if read == ended else -50.0) for read in lengths)
        says = inputs.Model(rng.getrandbits(48), vocab, boosts, tied=tied)
        model = CachedModel(says, chunk, length if whole_chunks else 0)
        arguments = {"step": Oracle("step"), "prompt": prompt, "chunk": chunk}
        arguments |= {"max_new_tokens": max_new_tokens, "end_token": end}
        return Case(arguments, label, {"step": model})

    return [
        case("a prompt of one chunk", 5, chunk=rng.randint(6, 7)),
        case("a prompt in chunks", 2 * chunk + rng.randint(1, chunk - 1)),
        case("whole chunks", 2 * chunk),
        case("the short chunk", 2 * chunk + rng.randint(1, chunk - 1), whole_chunks=True),
        case("two likeliest tokens", chunk + 1, tied=True),
        case("chunks of one token", 3, chunk=1),
        case("the end token", chunk + 1, ends_after=rng.randint(2, 3)),
        case("the end token at once", chunk + 1, ends_after=1),
        case("no new tokens allowed", chunk + 1, max_new_tokens=0),
        case("one token", chunk + 1, max_new_tokens=1),
    ]


def _sends_all_again(step, prompt, chunk, max_new_tokens, end_token):
    logits, cache = _prefill(step, prompt, chunk)
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        new.append(int(logits.argmax()))
        logits, cache = step((prompt + new)[-chunk:], cache)
    return new


def _forgets_the_cache(step, prompt, chunk, max_new_tokens, end_token):
    logits, _ = _prefill(step, prompt, chunk)
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        new.append(int(logits.argmax()))
        logits, _ = step(new[-1:], None)
    return new


def _reads_the_last_again(step, prompt, chunk, max_new_tokens, end_token):
    _, cache = _prefill(step, prompt, chunk)
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        logits, cache = step([*prompt, *new][-1:], cache)
        new.append(int(logits.argmax()))
    return new


def _keeps_the_first_cache(step, prompt, chunk, max_new_tokens, end_token):
    logits, cache = _prefill(step, prompt, chunk)
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        new.append(int(logits.argmax()))
        logits, _ = step(new[-1:], cache)
    return new


def _at_once(step, prompt, chunk, max_new_tokens, end_token):
    return cached_loop(step, prompt, len(prompt), max_new_tokens, end_token)


def _drops_the_rest(step, prompt, chunk, max_new_tokens, end_token):
    whole = len(prompt) // chunk * chunk or len(prompt)
    return cached_loop(step, prompt[:whole], chunk, max_new_tokens, end_token)


def _chunks_alone(step, prompt, chunk, max_new_tokens, end_token):
    for start in range(0, (len(prompt) - 1) // chunk * chunk, chunk):
        step(prompt[start : start + chunk], None)
    return cached_loop(step, prompt[(len(prompt) - 1) // chunk * chunk :], chunk, max_new_tokens, end_token)


def _an_empty_chunk(step, prompt, chunk, max_new_tokens, end_token):
    if len(prompt) % chunk == 0 and chunk > 1:
        step([], None)
    return cached_loop(step, prompt, chunk, max_new_tokens, end_token)


def _short_chunk_first(step, prompt, chunk, max_new_tokens, end_token):
    """Of several chunks the first has what the others leave over."""
    short = len(prompt) % chunk
    if max_new_tokens == 0 or not short or len(prompt) < chunk:
        return cached_loop(step, prompt, chunk, max_new_tokens, end_token)
    _, cache = step(prompt[:short], None)
    return cached_loop(
        lambda tokens, held: step(tokens, cache if held is None else held),
        *(prompt[short:], chunk, max_new_tokens, end_token),
    )


def _highest_id(step, prompt, chunk, max_new_tokens, end_token):
    def mirrored(tokens, cache):
        """The highest id of those with the greatest logit is made the only one."""
        logits, cache = step(tokens, cache)
        last = int((logits == logits.max()).nonzero()[-1])
        return logits.index_fill(0, torch.tensor([last]), torch.inf), cache

    return cached_loop(mirrored, prompt, chunk, max_new_tokens, end_token)


def _without_the_end(step, prompt, chunk, max_new_tokens, end_token):
    return [t for t in cached_loop(step, prompt, chunk, max_new_tokens, end_token) if t != end_token]


def _goes_on(step, prompt, chunk, max_new_tokens, end_token):
    return cached_loop(step, prompt, chunk, max_new_tokens, -1)


def _always_one(step, prompt, chunk, max_new_tokens, end_token):
    return cached_loop(step, prompt, chunk, max(1, max_new_tokens), end_token)


def _reads_for_nothing(step, prompt, chunk, max_new_tokens, end_token):
    if max_new_tokens == 0:
        _prefill(step, prompt, chunk)
    return cached_loop(step, prompt, chunk, max_new_tokens, end_token)


def _token_by_token(step, prompt, chunk, max_new_tokens, end_token):
    return cached_loop(step, prompt, 1, max_new_tokens, end_token)


def _recomputes(step, prompt, chunk, max_new_tokens, end_token):
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        new.append(int(_prefill(step, prompt + new, chunk)[0].argmax()))
    return new


def _reads_the_last(step, prompt, chunk, max_new_tokens, end_token):
    logits, cache = _prefill(step, prompt, chunk)
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        new.append(int(logits.argmax()))
        logits, cache = step(new[-1:], cache)
    return new


def _empties_the_prompt(step, prompt, chunk, max_new_tokens, end_token):
    new = cached_loop(step, prompt, chunk, max_new_tokens, end_token)
    prompt.clear()
    return new


FORWARD_PASSES = OracleCalls("step")

EXERCISE = Exercise(
    name="02.cached_loop",
    function="cached_loop",
    title="The loop that reads every token once",
    points=9,
    minutes=15,
    level=3,
    asks=ASKS,
    signature="cached_loop(step, prompt, chunk, max_new_tokens, end_token)",
    cases=cases,
    reference=cached_loop,
    comparison=Exact("token"),
    rules=(FORWARD_PASSES, NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("sends what was read again", _sends_all_again, "a prompt of one chunk"),
        Mutant("forgets the cache", _forgets_the_cache, "a prompt of one chunk"),
        Mutant("reads the last token again", _reads_the_last_again, "a prompt of one chunk"),
        Mutant("keeps the prompt's cache", _keeps_the_first_cache, "a prompt of one chunk"),
        Mutant("sends the prompt at once", _at_once, "a prompt in chunks"),
        Mutant("drops the last chunk", _drops_the_rest, "a prompt in chunks"),
        Mutant("reads each chunk by itself", _chunks_alone, "a prompt in chunks"),
        Mutant("sends an empty chunk", _an_empty_chunk, "whole chunks"),
        Mutant("reads the short chunk first", _short_chunk_first, "the short chunk"),
        Mutant("takes the highest of equal ids", _highest_id, "two likeliest tokens"),
        Mutant("leaves the end token out", _without_the_end, "the end token"),
        Mutant("goes on after the end", _goes_on, "the end token"),
        Mutant("reads the prompt for nothing", _reads_for_nothing, FORWARD_PASSES.name),
        Mutant("always writes a token", _always_one, "no new tokens allowed"),
        Mutant("reads the prompt token by token", _token_by_token, FORWARD_PASSES.name),
        Mutant("recomputes the whole text", _recomputes, FORWARD_PASSES.name),
        Mutant("reads the last token too", _reads_the_last, FORWARD_PASSES.name),
        Mutant("empties the prompt", _empties_the_prompt, NoMutation().name),
    ),
)
