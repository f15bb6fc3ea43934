"""04.look_up: drafts without a model, copied from where the text said the same before."""

from __future__ import annotations

import random

from llmcourse.grading.compare import Exact
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation

ASKS = r"""
The cheapest drafter has no weights. Texts repeat themselves, code above all: if the last few tokens were
there before, what followed them then is a good guess (*prompt lookup*, Saxena 2023).

Write `look_up(text, num_tokens, longest)`.

- `text`: list of token ids, at least one: prompt and output so far.
- `num_tokens`: how many drafts are wanted, at least 1. `longest`: an int, at least 1.
- returns the drafts, a list of `num_tokens` ids; an empty list where nothing is found.

Take the last `longest` tokens of the text and look for an **earlier** place where the same tokens stand in a
row. It may overlap the end, but is not the end itself. If there is none, try the last `longest - 1` tokens,
and so on down to a single one. Of several places take the **latest**. The drafts are what follows that place.

Where the text ends before there are enough drafts, go on as if those found so far stood at its end: copying
goes on with what was just copied.

```python
>>> look_up([1, 2, 3, 4, 9, 2, 3], num_tokens=2, longest=3)     # 2, 3 was there, and 4, 9 followed
[4, 9]
>>> look_up([7, 1, 2, 1, 2], num_tokens=5, longest=3)           # a text in a loop goes on in its loop
[1, 2, 1, 2, 1]
>>> look_up([1, 2, 3], num_tokens=2, longest=3)
[]
```
"""

HINTS = (
    "Two loops: over the size of the end that is looked up, from large to small, and over the places where "
    "it may stand, from the latest to the earliest. The first match is the one.",
    "An end of size n stands at place start if text[start : start + n] == text[-n:]. The end itself has "
    "start = len(text) - n; the latest place to look at is one before. No end is longer than len(text) - 1.",
    "With a match, what follows begins at start + n. Append it token by token to a copy of the text, "
    "grown.append(grown[place]), place going up by one each time; the copy never ends too early.",
)

FOUND_ITSELF = (
    "The end was found at the end: that place matches always, and nothing follows it. Look at earlier places "
    "only."
)
EARLIEST = (
    "That follows the earliest such place. Of several the latest is asked for: it is nearest to what is "
    "being written."
)
HINTS_AT = {
    "the longer end": (
        "A shorter end stands at a later place, and something else follows there. The longer one comes "
        "first: it says more about what comes next."
    ),
    "several places": EARLIEST,
    "at the very beginning": (
        "The only place is the text's own beginning: start goes down to 0, and range leaves its end out."
    ),
    "what follows there": (
        "All drafts follow the one place that was found. It is not looked up again with the first draft at "
        "the end: that would lead to a later place."
    ),
    "no longer than that": (
        "A longer end than `longest` was there too, at an earlier place. With its last `longest` tokens the "
        "latest place counts."
    ),
    "an end that overlaps": (
        "The place that matches may overlap the end, as in 1, 1, 1 with the last two tokens: the latest "
        "start is len(text) - n - 1."
    ),
    "a text in a loop": (
        "The match is so near to the end that the text is over too early. Append each draft to a copy of the "
        "text, and the next one is there to be copied."
    ),
    "a single token": "The last token alone is looked up too, when nothing longer is found.",
    "nothing is found": "Where not even the last token was there before, there are no drafts: [].",
    "a text of one token": "There is no earlier place in a text of one token: [].",
}


def look_up(text: list[int], num_tokens: int, longest: int) -> list[int]:
    """The longest end first, the latest place first."""
    return _copied(text, num_tokens, _place(text, range(min(longest, len(text) - 1), 0, -1)))


def _place(text, sizes, latest=True, first=1, lowest=0):
    """Where what follows the match begins; None without one.

    Args:
        first: how far before the end it looks.
        lowest: the last place that it looks at.
    """
    for size in sizes:
        starts = range(lowest, len(text) - size - first + 1)
        for start in reversed(starts) if latest else starts:
            if text[start : start + size] == text[len(text) - size :]:
                return start + size
    return None


def _copied(text, num_tokens, place):
    if place is None:
        return []
    grown = list(text)
    for offset in range(num_tokens):
        grown.append(grown[place + offset])
    return grown[len(text) :]


def cases(rng: random.Random) -> list[Case]:
    longest = rng.randint(3, 4)
    ids = rng.sample(range(100, 1000), 60)  # no token comes twice but where a case puts it

    def fresh(count):
        return [ids.pop() for _ in range(count)]

    def case(label, text, num_tokens, longest=longest):
        return Case({"text": text, "num_tokens": num_tokens, "longest": longest}, label)

    def once():
        """The end was there once, and enough follows it."""
        ids[:] = rng.sample(range(100, 1000), 60)
        return fresh(longest)

    end = once()
    cases = [case("found once", [*fresh(3), *end, *fresh(6), *end], rng.randint(2, 4))]
    end = once()
    later = [*fresh(1), end[-1], *fresh(5)]  # the last token alone, at a later place
    cases.append(case("the longer end", [*fresh(2), *end, *fresh(5), *later, *end], rng.randint(2, 4)))
    end = once()
    cases.append(case("several places", [*end, *fresh(5), *end, *fresh(5), *end], rng.randint(2, 4)))
    end = once()
    (token,) = fresh(1)  # follows at both places, and its last tokens with it; then they differ
    text = [*fresh(2), *end, token, *fresh(5), *end[1:], token, *fresh(5), *end]
    cases.append(case("what follows there", text, rng.randint(3, 4)))
    end = [*once(), *fresh(2)]  # longer than what is looked up, which stands at a later place alone
    cases.append(case("no longer than that", [*end, *fresh(5), *end[2:], *fresh(5), *end], rng.randint(2, 4)))
    once()
    (token,) = fresh(1)
    cases.append(case("an end that overlaps", [token, token, *fresh(5), *[token] * 3], 1, longest=2))
    loop = once()[: rng.randint(2, longest - 1)]  # shorter than what is looked up first
    cases.append(case("a text in a loop", [*fresh(4), *loop * 2], 2 * len(loop) + 1))
    once()
    (token,) = fresh(1)
    cases.append(case("a single token", [*fresh(3), token, *fresh(6), token], rng.randint(2, 4)))
    once()
    (token,) = fresh(1)  # no more of it: a shorter end that begins later would say the same
    cases.append(case("at the very beginning", [token, *fresh(6), token], rng.randint(2, 4)))
    once()
    cases.append(case("nothing is found", fresh(rng.randint(6, 9)), 3))
    cases.append(case("a text of one token", fresh(1), 3))
    return cases


def _from_sizes(sizes, **settings):
    def answer(text, num_tokens, longest):
        chosen = sizes(min(longest, len(text) - 1), len(text))
        return _copied(text, num_tokens, _place(text, chosen, **settings))

    return answer


def _finds_the_end(text, num_tokens, longest):
    return []


def _with_the_match(text, num_tokens, longest):
    drafts = look_up(text, num_tokens + longest, longest)
    return (text[-longest:] + drafts)[:num_tokens] if drafts else []


def _looks_up_again(text, num_tokens, longest):
    grown = list(text)
    for _ in range(num_tokens):
        grown += look_up(grown, 1, longest)
    return grown[len(text) :]


def _one_late(text, num_tokens, longest):
    return look_up(text, num_tokens + 1, longest)[1:]


def _one_too_few(text, num_tokens, longest):
    return look_up(text, num_tokens - 1, longest)


_whole_size_only = _from_sizes(lambda most, length: [most])
_shortest_first = _from_sizes(lambda most, length: range(1, most + 1))
_earliest = _from_sizes(lambda most, length: range(most, 0, -1), latest=False)
_any_length = _from_sizes(lambda most, length: range(length - 1, 0, -1))
_not_at_0 = _from_sizes(lambda most, length: range(most, 0, -1), lowest=1)
_no_single_token = _from_sizes(lambda most, length: range(most, 1, -1))


def _no_overlap(text, num_tokens, longest):
    for size in range(min(longest, len(text) - 1), 0, -1):
        found = _place(text, [size], first=size)
        if found is not None:
            return _copied(text, num_tokens, found)
    return []


def _up_to_the_end(text, num_tokens, longest):
    place = _place(text, range(min(longest, len(text) - 1), 0, -1))
    return [] if place is None else text[place : place + num_tokens]


def _repeats_the_last(text, num_tokens, longest):
    drafts = _up_to_the_end(text, num_tokens, longest)
    return drafts + drafts[-1:] * (num_tokens - len(drafts))


def _the_last_token(text, num_tokens, longest):
    return look_up(text, num_tokens, longest) or text[-1:] * num_tokens


def _a_token_of_one(text, num_tokens, longest):
    return look_up(text, num_tokens, longest) if len(text) > 1 else text * num_tokens


def _in_place(text, num_tokens, longest):
    drafts = look_up(text, num_tokens, longest)
    text.extend(drafts)
    return drafts


EXERCISE = Exercise(
    name="04.look_up",
    function="look_up",
    title="A drafter without weights",
    points=8,
    minutes=15,
    level=3,
    asks=ASKS,
    signature="look_up(text, num_tokens, longest)",
    cases=cases,
    reference=look_up,
    comparison=Exact("token"),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("finds the end itself", _finds_the_end, "found once", FOUND_ITSELF),
        Mutant(
            "begins with what was looked up",
            _with_the_match,
            "found once",
            "These begin with the tokens that were looked up. They are in the text already: the drafts are "
            "what follows them.",
        ),
        Mutant("begins one token late", _one_late, "found once"),
        Mutant("gives one token too few", _one_too_few, "found once"),
        Mutant("looks up the shortest end first", _shortest_first, "the longer end"),
        Mutant("takes the earliest place", _earliest, "several places", EARLIEST),
        Mutant("never looks at the first place", _not_at_0, "at the very beginning"),
        Mutant("looks up again after each draft", _looks_up_again, "what follows there"),
        Mutant("looks up any length", _any_length, "no longer than that"),
        Mutant("wants the match clear of the end", _no_overlap, "an end that overlaps"),
        Mutant("ends where the text does", _up_to_the_end, "a text in a loop"),
        Mutant("repeats the last token", _repeats_the_last, "a text in a loop"),
        Mutant("looks up nothing shorter", _whole_size_only, "a text in a loop"),
        Mutant("looks up no single token", _no_single_token, "a single token"),
        Mutant("proposes the last token for want of others", _the_last_token, "nothing is found"),
        Mutant("finds something in a text of one token", _a_token_of_one, "a text of one token"),
        Mutant("writes the drafts into the text", _in_place, NoMutation().name),
    ),
)
