"""01.beam_search: many texts at once, one forward pass a step, and texts that have ended."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import torch

from llmcourse.grading.compare import Ranking
from llmcourse.grading.exercise import Case, Exercise, Mutant, Oracle
from llmcourse.grading.exercises import inputs
from llmcourse.grading.rules import Forbid, NoMutation, OracleCalls

ASKS = r"""
*Beam search* keeps the $n$ most probable texts instead of one. Write
`beam_search(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty)`.

- `logits_of`: the model. `logits_of(texts)` takes a list of texts, each a list of token ids, and returns the
  logits of the next token of each: a tensor of shape `(len(texts), V)`. Each call is one forward pass.
- `prompt`: list of token ids, at least one.
- `num_beams`: $n$, at least 1 and below $V$. `max_new_tokens`: at least 1. `end_token`: a token id.
- `length_penalty`: $\lambda$, a number.
- returns a list of at most $n$ tuples `(tokens, score)`, the best first: `tokens` the new ones, a list of
  `int` without the prompt, `score` a `float`.

Begin with one live beam, which is empty. Then, `max_new_tokens` times:

1. Extend every live beam by every token. The log-probability of an extension is that of its beam plus that of
   the token, $\log \mathrm{softmax}(l)_v$. Sort all extensions of all beams by it, the largest first.
2. An extension that ends with the end token is *finished* if it is among the first $n$ of all. (Further down
   it is dropped.)
3. The first $n$ that do not end are the live beams of the next step.

After the last step the live beams are finished too. Score every finished text by $\log P / m^\lambda$, where
$m$ is the number of its new tokens, the end token included; return the best $n$. Do not end the search early,
and ask for all live beams of a step in one forward pass. No two sums are so close that rounding decides.

```python
>>> table = torch.tensor([[0.1, 0.6, 0.3], [0.4, 0.3, 0.3], [0.05, 0.05, 0.9]])
>>> def logits_of(texts):               # a model that looks at the last token only
...     return table[[text[-1] for text in texts]].log()
>>> beam_search(logits_of, [0], 1, 2, end_token=-1, length_penalty=0.0)[0][0]     # greedy: 0.6 · 0.4
[1, 0]
>>> beam_search(logits_of, [0], 2, 2, end_token=-1, length_penalty=0.0)[0][0]     # 0.3 · 0.9
[2, 2]
```
"""

HINTS = (
    "Two lists do it: live beams as (tokens, log-probability), and finished texts of the same form. Write "
    "one step on paper for n = 2 and three tokens before you write the loop.",
    "In each step make all extensions of all live beams into one list and sort it; only then look at the end "
    "token. Choosing the best token of each beam by itself is greedy search done n times.",
    "The finished ones are among extensions[:n]; the live ones are the first n of those that do not end. "
    "Take log_softmax of the (beams, V) logits once a step; tolist() gives sums that are Python floats.",
    "Divide by len(tokens) ** length_penalty only at the very end, when texts of different lengths compete; "
    "during the search all live beams are equally long. Add the live beams to the finished before you sort.",
)

HINTS_AT = {
    "two beams": (
        "All extensions of all beams go into one list before the best are taken: two may come of the same "
        "beam, and none of another. There is one beam at first, the empty one."
    ),
    "an end token": (
        "What ends among the first n goes to the finished texts: it is not extended again, and competes at "
        "the very end."
    ),
    "a length penalty": (
        "Divide by m ** length_penalty, where m counts all new tokens, the end token too; not in the "
        "search, but when finished texts are compared."
    ),
    "live beams beside finished ones": (
        "Finished texts take no place of the live: n beams go on, however many have ended. Then finished "
        "and live ones are sorted together, by their scores."
    ),
    "an end token too far down": (
        "What ends is finished only if it is among the first n of all extensions, those that do not end "
        "included. Below that it is dropped."
    ),
    "many texts that end early": "Go on when n texts are finished: a later one may have the better score.",
    "forward passes": "One call a step: all live texts go into it as one list.",
}


def beam_search(
    logits_of: Callable,
    prompt: list[int],
    num_beams: int,
    max_new_tokens: int,
    end_token: int,
    length_penalty: float | int,
) -> list[tuple[list[int], float]]:
    """The best texts and their scores, best first."""
    texts, _ = _search(logits_of, prompt, num_beams, max_new_tokens, end_token)
    return _best(texts, num_beams, length_penalty)


def _search(logits_of, prompt, num_beams, steps, end_token):
    """All texts that finish, and the extensions that each step looked at."""
    live, finished, seen = [([], 0.0)], [], []
    for _ in range(steps):
        extensions = _extend(logits_of, prompt, live)
        seen.append(extensions)
        finished += [e for e in extensions[:num_beams] if e[0][-1] == end_token]
        live = [e for e in extensions if e[0][-1] != end_token][:num_beams]
    return finished + live, seen


def _extend(logits_of, prompt, live):
    """All beams by all tokens, the most probable first."""
    rows = logits_of([prompt + tokens for tokens, _ in live]).log_softmax(-1).tolist()
    extensions = [
        ([*tokens, token], total + log_prob)
        for (tokens, total), row in zip(live, rows, strict=True)
        for token, log_prob in enumerate(row)
    ]
    return _by_value(extensions)


def _by_value(texts):
    return sorted(texts, key=lambda text: -text[1])


def _best(texts, num_beams, length_penalty):
    scored = [(tokens, log_prob / len(tokens) ** length_penalty) for tokens, log_prob in texts]
    return _by_value(scored)[:num_beams]


COMPARISON = Ranking(atol=1e-4)
APART = 5e-4  # between any two sums that are compared
ATTEMPTS = 1000


def cases(rng: random.Random) -> list[Case]:
    # Label, beams, length penalty, when the end token becomes likely, and the mistakes that must show here.
    plans = (
        ("one beam", 1, 0.0, None, ()),
        ("two beams", 2, 0.0, None, (_greedy_each, _same_beginnings)),
        ("three beams", 3, 0.0, None, ()),
        ("an end token", 2, 0.0, 2, (_goes_on, _drops_the_finished)),
        ("a length penalty", 3, 1.0, 1, (_ignores_lengths, _end_not_counted)),
        ("live beams beside finished ones", 3, 1.0, 1, (_narrows, _unsorted)),
        ("an end token too far down", 2, 0.0, 1, (_finishes_any,)),
        ("many texts that end early", 2, 2.0, 0, (_stops_early,)),
    )
    # A mistake that is looked for later does not show yet: so the check's name says what is wrong.
    later = [[wrong for plan in plans[i + 1 :] for wrong in plan[-1]] for i in range(len(plans))]
    return [_case(rng, *plan, hidden) for plan, hidden in zip(plans, later, strict=True)]


def _case(rng, label, num_beams, length_penalty, end_from, shows, hidden):
    steps, vocab = 4, rng.randint(6, 8)
    for _ in range(ATTEMPTS):
        prompt = [rng.randrange(1, vocab) for _ in range(rng.randint(2, 3))]
        rises = [0.7 if end_from is not None and i >= end_from else -30.0 for i in range(steps)]
        boosts = tuple((len(prompt) + i, 0, rise) for i, rise in enumerate(rises))
        model = inputs.BatchModel(inputs.Model(rng.getrandbits(48), vocab, boosts, spread=0.6))
        arguments = {"prompt": prompt, "num_beams": num_beams, "max_new_tokens": steps}
        arguments |= {"end_token": 0, "length_penalty": length_penalty}
        if _tells({"logits_of": model, **arguments}, shows, hidden):
            return Case({"logits_of": Oracle("logits_of"), **arguments}, label, {"logits_of": model})
    raise ValueError(f"no case {label!r} found in {ATTEMPTS} draws; ask less of it")


def _tells(arguments, shows, hidden):
    """Whether these mistakes show, those do not, and no two numbers that are compared nearly tie."""
    given = {name: arguments[name] for name in ("logits_of", "prompt", "num_beams", "end_token")}
    texts, seen = _search(**given, steps=arguments["max_new_tokens"])
    width, penalty = arguments["num_beams"], arguments["length_penalty"]
    ranked = [_best(texts, width + 1, penalty), *(extensions[: 2 * width + 1] for extensions in seen)]
    if any(a[1] - b[1] < APART for row in ranked for a, b in pairwise(row)):
        return False
    right = _best(texts, width, penalty)
    shown = [True] * len(shows) + [False] * len(hidden)
    mistakes = zip((*shows, *hidden), shown, strict=True)
    return all(_differ(mistake(**arguments), right) == wanted for mistake, wanted in mistakes)


def _differ(texts, right):
    """As the comparison has it, but without words for it: this is asked often."""
    if [tokens for tokens, _ in texts] != [tokens for tokens, _ in right]:
        return True
    return any(abs(a[1] - b[1]) > COMPARISON.atol for a, b in zip(texts, right, strict=True))


def _greedy_each(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    live = _extend(logits_of, prompt, [([], 0.0)])[:num_beams]
    for _ in range(max_new_tokens - 1):
        extensions = _extend(logits_of, prompt, live)
        live = [next(e for e in extensions if e[0][:-1] == tokens) for tokens, _ in live]
    return _best(live, num_beams, length_penalty)


def _same_beginnings(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    live, finished = [([], 0.0)] * num_beams, []
    for _ in range(max_new_tokens):
        extensions = _extend(logits_of, prompt, live)
        finished += [e for e in extensions[:num_beams] if e[0][-1] == end_token]
        live = [e for e in extensions if e[0][-1] != end_token][:num_beams]
    return _best(finished + live, num_beams, length_penalty)


def _raw_logits(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    class Raw(torch.Tensor):
        def log_softmax(self, dim):
            return self

    raw = lambda texts: logits_of(texts).as_subclass(Raw)  # noqa: E731
    return beam_search(raw, prompt, num_beams, max_new_tokens, end_token, length_penalty)


def _with_the_prompt(logits_of, prompt, *settings, **more):
    return [(prompt + tokens, score) for tokens, score in beam_search(logits_of, prompt, *settings, **more)]


def _scores_as_tensors(*arguments, **more):
    return [(tokens, torch.tensor(score)) for tokens, score in beam_search(*arguments, **more)]


def _best_alone(*arguments, **more):
    return beam_search(*arguments, **more)[:1]


def _goes_on(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    return beam_search(logits_of, prompt, num_beams, max_new_tokens, -1, length_penalty)


def _drops_the_finished(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    texts, _ = _search(logits_of, prompt, num_beams, max_new_tokens, end_token)
    return _best([text for text in texts if text[0][-1] != end_token], num_beams, length_penalty)


def _narrows(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    live, finished = [([], 0.0)], []
    for _ in range(max_new_tokens):
        extensions = _extend(logits_of, prompt, live)[:num_beams] if live else []
        finished += [e for e in extensions if e[0][-1] == end_token]
        live = [e for e in extensions if e[0][-1] != end_token]
    return _best(finished + live, num_beams, length_penalty)


def _unsorted(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    texts, _ = _search(logits_of, prompt, num_beams, max_new_tokens, end_token)
    best = _best(texts, num_beams, length_penalty)
    return sorted(best, key=lambda text: [tokens for tokens, _ in texts].index(text[0]))


def _ignores_lengths(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    return beam_search(logits_of, prompt, num_beams, max_new_tokens, end_token, 0.0)


def _end_not_counted(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    texts, _ = _search(logits_of, prompt, num_beams, max_new_tokens, end_token)
    lengths = [max(1, len(tokens) - (tokens[-1] == end_token)) for tokens, _ in texts]
    scored = [(t, total / m**length_penalty) for (t, total), m in zip(texts, lengths, strict=True)]
    return _by_value(scored)[:num_beams]


def _finishes_any(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    texts, seen = _search(logits_of, prompt, num_beams, max_new_tokens, end_token)
    ended = [e for extensions in seen for e in extensions if e[0][-1] == end_token]
    return _best(ended + [text for text in texts if text[0][-1] != end_token], num_beams, length_penalty)


def _stops_early(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    live, finished = [([], 0.0)], []
    for _ in range(max_new_tokens):
        extensions = _extend(logits_of, prompt, live)
        finished += [e for e in extensions[:num_beams] if e[0][-1] == end_token]
        live = [e for e in extensions if e[0][-1] != end_token][:num_beams]
        if len(finished) >= num_beams:
            break
    return _best(finished + live, num_beams, length_penalty)


def _a_pass_a_beam(logits_of, prompt, *settings, **more):
    apart = lambda texts: torch.cat([logits_of([tokens]) for tokens in texts])  # noqa: E731
    return beam_search(apart, prompt, *settings, **more)


def _appends_to_the_prompt(logits_of, prompt, *settings, **more):
    found = beam_search(logits_of, prompt, *settings, **more)
    prompt += found[0][0]
    return found


FORWARD_PASSES = OracleCalls("logits_of", at_most=True)

EXERCISE = Exercise(
    name="01.beam_search",
    function="beam_search",
    title="Beam search",
    points=16,
    minutes=40,
    level=5,
    asks=ASKS,
    signature="beam_search(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty)",
    cases=cases,
    reference=beam_search,
    comparison=COMPARISON,
    rules=(FORWARD_PASSES, NoMutation(), Forbid()),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("adds logits, not log-probabilities", _raw_logits, "one beam"),
        Mutant("returns the prompt too", _with_the_prompt, "one beam"),
        Mutant("returns scores as tensors", _scores_as_tensors, "one beam"),
        Mutant("extends each beam by its own best token", _greedy_each, "two beams"),
        Mutant("begins with several equal beams", _same_beginnings, "two beams"),
        Mutant("returns the best alone", _best_alone, "two beams"),
        Mutant("writes on after the end token", _goes_on, "an end token"),
        Mutant("drops finished texts", _drops_the_finished, "an end token"),
        Mutant(
            "lets finished texts take the place of live ones", _narrows, "live beams beside finished ones"
        ),
        Mutant(
            "returns texts in the order in which they ended", _unsorted, "live beams beside finished ones"
        ),
        Mutant("ignores the length", _ignores_lengths, "a length penalty"),
        Mutant("does not count the end token", _end_not_counted, "a length penalty"),
        Mutant("finishes texts however improbable", _finishes_any, "an end token too far down"),
        Mutant("stops at the first n that end", _stops_early, "many texts that end early"),
        Mutant("asks beam by beam", _a_pass_a_beam, FORWARD_PASSES.name),
        Mutant("appends to the prompt", _appends_to_the_prompt, NoMutation().name),
    ),
)
