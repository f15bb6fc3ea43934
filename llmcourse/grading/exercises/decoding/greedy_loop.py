"""01.greedy_loop: the autoregressive loop, and what it costs in forward passes."""

from __future__ import annotations

import random
from collections.abc import Callable

from llmcourse.grading.compare import Exact
from llmcourse.grading.exercise import Case, Exercise, Mutant, Oracle
from llmcourse.grading.exercises import inputs
from llmcourse.grading.rules import Forbid, NoMutation, OracleCalls

ASKS = r"""
The loop around every decoder, with the simplest of choices: the most probable token.

> **repeat** $l = \mathcal{M}(u)$;  $u' = \arg\max_v l_v$;  $u \leftarrow u \oplus [u']$<br>
> **until** $u'$ is the end token, or as many new tokens are written as are allowed

Write `greedy_loop(logits_of, prompt, max_new_tokens, end_token)`.

- `logits_of`: the model, a function. `logits_of(tokens)` takes a list of token ids, all of the text so far,
  and returns the logits of the next token, a tensor of shape `(V,)`. Each call is one forward pass.
- `prompt`: list of token ids, at least one. It may hold the end token: many texts begin with it.
- `max_new_tokens`: an integer, at least 0.
- `end_token`: a token id.
- returns the **new** tokens, a list of `int` without the prompt. The end token, if it came, is the last
  of them.

Of equally probable tokens take the one with the lowest id. Call the model exactly once for each new token:
a forward pass whose result nobody uses is time that somebody pays for.

```python
>>> def logits_of(tokens):              # a model that counts
...     return -(torch.arange(10) - tokens[-1] - 1.0).abs()
>>> greedy_loop(logits_of, [4, 5], max_new_tokens=3, end_token=9)
[6, 7, 8]
>>> greedy_loop(logits_of, [4, 5], max_new_tokens=8, end_token=9)
[6, 7, 8, 9]
```
"""

HINTS = (
    "How often may the model be called when max_new_tokens is 0? Let one round of the loop be one call and "
    "one new token, and check what ends the text only afterwards.",
    "Keep the new tokens in a list of their own. In each round the model reads prompt + new; compare only "
    "the token that was just chosen with the end token, not the whole text.",
    "for _ in range(max_new_tokens): ask, choose with int(logits.argmax()), append, and break if it is the "
    "end token. Appending to the prompt itself would change the list of whoever called you.",
)

HINTS_AT = {
    "the end token": (
        "Append first, then compare: the end token is the last one of the new tokens, and nothing comes "
        "after it."
    ),
    "the end token at once": (
        "The first new token may be the end token already: compare every one, the first too."
    ),
    "the end token as the last one allowed": (
        "Two reasons to stop at once: the end token is appended once, and the text is no longer than allowed."
    ),
    "no new tokens allowed": (
        "With max_new_tokens = 0 nothing is written, and the model is not asked at all: check before you ask."
    ),
    "an end token in the prompt": (
        "Compare the token that was just chosen with the end token, not the whole text: a prompt may begin "
        "with one."
    ),
    "two likeliest tokens": (
        "Of a tie the lowest id counts, which is what argmax gives; topk and sort need not."
    ),
    "forward passes": (
        "One call for each new token: none before the loop, none after the last token, and none for a text "
        "that was asked about already."
    ),
}


def greedy_loop(logits_of: Callable, prompt: list[int], max_new_tokens: int, end_token: int) -> list[int]:
    """Asks, chooses, appends, until the end token or the limit."""
    new: list[int] = []
    while len(new) < max_new_tokens:
        new.append(int(logits_of(prompt + new).argmax()))
        if new[-1] == end_token:
            break
    return new


def cases(rng: random.Random) -> list[Case]:
    vocab, end, limit = rng.randint(8, 12), rng.randrange(8), rng.randint(4, 6)
    prompt = [token for (token,) in inputs.texts(rng, [1] * rng.randint(2, 4), vocab)]
    prompt = [token if token != end else (end + 1) % vocab for token in prompt]

    def case(label, ends_after=None, max_new_tokens=limit, start=prompt, tied=False):
        """A text that ends after so many new tokens, the end token included; None for never."""
        lengths = range(len(start), len(start) + limit + 2)
        ended = None if ends_after is None else len(start) + ends_after - 1
        boosts = tuple((length, end, 50.0 if length == ended else -50.0) for length in lengths)
        model = inputs.Model(rng.getrandbits(48), vocab, boosts, tied=tied)
        arguments = {"logits_of": Oracle("logits_of"), "prompt": list(start)}
        arguments |= {"max_new_tokens": max_new_tokens, "end_token": end}
        return Case(arguments, label, {"logits_of": model})

    return [
        case("the length limit"),
        case("the end token", ends_after=rng.randint(2, 3)),
        case("the end token at once", ends_after=1),
        case("the end token as the last one allowed", ends_after=limit),
        case("no new tokens allowed", max_new_tokens=0),
        case("one token", max_new_tokens=1),
        case("an end token in the prompt", start=[end, *prompt]),
        case("two likeliest tokens", tied=True),
    ]


def _without_the_end(logits_of, prompt, max_new_tokens, end_token):
    return [t for t in greedy_loop(logits_of, prompt, max_new_tokens, end_token) if t != end_token]


def _goes_on(logits_of, prompt, max_new_tokens, end_token):
    return greedy_loop(logits_of, prompt, max_new_tokens, -1)


def _with_the_prompt(logits_of, prompt, max_new_tokens, end_token):
    return prompt + greedy_loop(logits_of, prompt, max_new_tokens, end_token)


def _one_too_many(logits_of, prompt, max_new_tokens, end_token):
    return greedy_loop(logits_of, prompt, max_new_tokens + 1, end_token)


def _prompt_alone(logits_of, prompt, max_new_tokens, end_token):
    return greedy_loop(lambda tokens: logits_of(tokens[: len(prompt)]), prompt, max_new_tokens, end_token)


def _tensors(logits_of, prompt, max_new_tokens, end_token):
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        new.append(logits_of(prompt + [int(token) for token in new]).argmax())
    return new


def _always_one(logits_of, prompt, max_new_tokens, end_token):
    return greedy_loop(logits_of, prompt, max(1, max_new_tokens), end_token)


def _stops_at_the_prompt(logits_of, prompt, max_new_tokens, end_token):
    return greedy_loop(logits_of, prompt, 0 if end_token in prompt else max_new_tokens, end_token)


def _highest_id(logits_of, prompt, max_new_tokens, end_token):
    new = []
    while len(new) < max_new_tokens and end_token not in new:
        logits = logits_of(prompt + new)
        new.append(int((logits == logits.max()).nonzero()[-1]))
    return new


def _asks_once_more(logits_of, prompt, max_new_tokens, end_token):
    tokens, logits = list(prompt), logits_of(prompt)
    for _ in range(max_new_tokens):
        tokens.append(int(logits.argmax()))
        if tokens[-1] == end_token:
            break
        logits = logits_of(tokens)
    return tokens[len(prompt) :]


def _appends_to_the_prompt(logits_of, prompt, max_new_tokens, end_token):
    before = len(prompt)
    prompt += greedy_loop(logits_of, prompt, max_new_tokens, end_token)
    return prompt[before:]


FORWARD_PASSES = OracleCalls("logits_of")

EXERCISE = Exercise(
    name="01.greedy_loop",
    function="greedy_loop",
    title="The autoregressive loop",
    points=8,
    minutes=10,
    level=1,
    asks=ASKS,
    signature="greedy_loop(logits_of, prompt, max_new_tokens, end_token)",
    cases=cases,
    reference=greedy_loop,
    comparison=Exact("token"),
    rules=(FORWARD_PASSES, NoMutation(), Forbid()),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("returns the prompt too", _with_the_prompt, "the length limit"),
        Mutant("writes one token too many", _one_too_many, "the length limit"),
        Mutant("reads only the prompt", _prompt_alone, "the length limit"),
        Mutant("returns tensors", _tensors, "the length limit"),
        Mutant("leaves the end token out", _without_the_end, "the end token"),
        Mutant("goes on after the end", _goes_on, "the end token"),
        Mutant("always writes a token", _always_one, "no new tokens allowed"),
        Mutant("stops at an end token in the prompt", _stops_at_the_prompt, "an end token in the prompt"),
        Mutant("takes the highest id of a tie", _highest_id, "two likeliest tokens"),
        Mutant("asks the model once more", _asks_once_more, FORWARD_PASSES.name),
        Mutant("appends to the prompt", _appends_to_the_prompt, NoMutation().name),
    ),
)
