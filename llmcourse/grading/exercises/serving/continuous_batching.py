"""03.continuous_batching: who runs in which slot, step by step, as the lecture's picture shows it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from llmcourse.grading.compare import Difference, Exact, show
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.flash_attention.drawn import OWN_WORK
from llmcourse.grading.printable import clean
from llmcourse.grading.rules import NoMutation

ASKS = r"""
The lecture's picture of continuous batching: four slots, eight steps, and no slot empty while somebody waits.

| | T1 | T2 | T3 | T4 | T5 | T6 | T7 | T8 |
|---|---|---|---|---|---|---|---|---|
| | S1 | S1 | S1 | S1 | S1 | END | S6 | S6 |
| | S2 | S2 | S2 | S2 | S2 | S2 | S2 | END |
| | S3 | S3 | S3 | S3 | END | S5 | S5 | S5 |
| | S4 | S4 | S4 | S4 | S4 | S4 | END | S7 |

Write the scheduler that draws it: `continuous_batching(requests, num_slots, room, num_steps)`.

- `requests`: a list of `(name, arrival, prompt, answer)`: a text, the step at which it comes (0 is the
  first), and the tokens of its prompt and of its answer, each at least 1. It is sorted by arrival; of those
  that come at the same step, the first in the list is first in line.
- `num_slots`: how many requests run at once. `room`: how many tokens the memory holds, of all that run.
- `num_steps`: how many steps are drawn.
- returns the picture: a list of `num_slots` lists, each of `num_steps` texts: what the slot does in each
  step.

In each step,

1. the waiting are admitted, in the order of their line: the first of them gets the free slot with the lowest
   number, as long as there is one and the memory has room for all that it will need: `prompt + answer - 1`
   tokens, as the last token of an answer is never read. If the first has no room, the others wait behind it:
   *nobody overtakes*;
2. every request in a slot writes one token, those just admitted too. Its slot shows its name, or `"END"` when
   this is the last token of its answer. An empty slot shows `""`;
3. a request that is at its end leaves: slot and room are free for the next step.

A request that needs more than all of `room` can never run: it is refused when it comes, and not put in line.

```python
>>> requests = [("S1", 0, 1, 2), ("S2", 0, 1, 4), ("S3", 0, 1, 2), ("S4", 4, 1, 1)]
>>> for slot in continuous_batching(requests, num_slots=2, room=20, num_steps=5):
...     print(slot)
['S1', 'END', 'S3', 'END', 'END']
['S2', 'S2', 'S2', 'END', '']
```
"""

HINTS = (
    "What has to be remembered from step to step: who waits, in order; and for each slot who is in it, with "
    "the tokens that its answer still lacks. What is the room that is taken, given the slots?",
    "A loop over the steps, with the three parts of the list in it, in their order. grid[slot][step] is "
    'written in the second; grid = [[""] * num_steps for _ in range(num_slots)] before the loop.',
    "while waiting and None in slots: look at waiting[0]; if what it needs and what those in the slots need "
    "is more than room, break; else slots[slots.index(None)] = waiting.pop(0), with its answer's length.",
)

HINTS_AT = {
    "one token": "The first token of an answer may be its last: the slot shows END at once.",
    "later arrivals": "Nobody is admitted before its arrival, also where a slot is empty.",
    "little room": (
        "A slot alone is not enough: what all requests in slots will need at their longest, and the new one, "
        "must be at most room. Who leaves gives its part back."
    ),
    "room to the last token": (
        "prompt + answer - 1 tokens, and exactly room is not too much: the last token is written, not read."
    ),
    "a short one behind a long one": (
        "The first in line has no room, and waits; so does the short one behind it that would fit. Else the "
        "long one might wait for ever."
    ),
    "one that can never fit": "Refused when it comes: in the line, it would block all that come after it.",
}


@dataclass(frozen=True)
class Picture:
    """Of a grid: both are drawn, a line a slot, with brackets where they first differ in time."""

    shown_steps: int = 12

    def __call__(self, got: object, expected: list[list[str]]) -> Difference | None:
        found = Exact("slot", "step")(got, expected)
        if found is None or found.form or [*map(len, got)] != [*map(len, expected)]:
            return found
        places = [(step, slot) for slot, row in enumerate(expected) for step in range(len(row))]
        step, slot = min(place for place in places if got[place[1]][place[0]] != expected[place[1]][place[0]])
        texts = (show(got[slot][step]), show(expected[slot][step]))
        reason = "slot {}, step {}: got {}, expected {}".format(slot, step, *texts)
        return Difference(reason, *(self._drawn(grid, slot, step) for grid in (got, expected)))

    def _drawn(self, grid, slot, step):
        first = max(0, min(step - self.shown_steps // 2, len(grid[0]) - self.shown_steps))
        steps = range(len(grid[0]))[first : first + self.shown_steps]
        head = "".join(f" {number:^6}" for number in steps)
        rows = [
            "".join(self._cell(row[at], (number, at) == (slot, step)) for at in steps)
            for number, row in enumerate(grid)
        ]
        return "\n".join([f"step  {head}", *(f"slot {number}{row}" for number, row in enumerate(rows))])

    def _cell(self, text, marked):
        text = clean(text, 4) or "·"
        return f" [{text:^4}]" if marked else f"  {text:^4} "


@dataclass(frozen=True)
class Slots:
    """Draws the picture; the parameters are what mutants get wrong.

    Args:
        together: whether a batch begins only when the one before is done.
        late: steps for which a slot stays empty after an end.
        most_admitted: in one step.
        longer: tokens more than an answer has.
        lowest: whether the lowest free slot is taken.
        arrives: whether arrivals are waited for.
        looks_at_room, whole_answer, gives_back: whether there must be room, for how much of the answer, and
            whether it is free again after an end.
        least_left: tokens that stay free.
        overtakes: whether those behind one without room are tried too.
        refuses: whether what can never fit is left out of the line.
    """

    together: bool = False
    late: int = 0
    most_admitted: int = 1000
    longer: int = 0
    lowest: bool = True
    arrives: bool = True
    looks_at_room: bool = True
    whole_answer: bool = True
    gives_back: bool = True
    least_left: int = 0
    overtakes: bool = False
    refuses: bool = True

    def __call__(self, requests, num_slots, room, num_steps):
        grid = [[""] * num_steps for _ in range(num_slots)]
        slots, empty_since, left = [None] * num_slots, [-self.late] * num_slots, room
        line = [r for r in requests if self._needs(r) <= room or not self.refuses]
        for step in range(num_steps):
            for request, slot in self._admitted(line, slots, empty_since, left, step):
                line.remove(request)
                left -= self._needs(request)
                slots[slot] = [request, request[3] + self.longer]
            for slot, running in enumerate(slots):
                if running is None:
                    continue
                running[1] -= 1
                grid[slot][step] = running[0][0] if running[1] else "END"
                if not running[1]:
                    slots[slot], empty_since[slot] = None, step + 1
                    left += self._needs(running[0]) * self.gives_back
        return grid

    def _needs(self, request):
        _, _, prompt, answer = request
        return prompt + (answer - 1 if self.whole_answer else 0)

    def _admitted(self, line, slots, empty_since, left, step):
        """Who is admitted at the beginning of a step, each with its slot."""
        free = [s for s, r in enumerate(slots) if r is None and step - empty_since[s] >= self.late]
        free = [] if self.together and any(slots) else free if self.lowest else free[::-1]
        admitted = []
        for request in [r for r in line if r[1] <= step or not self.arrives]:
            if not free or len(admitted) == self.most_admitted:
                break
            if self._needs(request) + self.least_left <= left or not self.looks_at_room:
                admitted.append((request, free.pop(0)))
                left -= self._needs(request)
            elif not self.overtakes:
                break
        return admitted


RIGHT = Slots()


def continuous_batching(requests: list[tuple], num_slots: int, room: int, num_steps: int) -> list[list[str]]:
    """Admission, one token for each, and who is done leaves."""
    return RIGHT(requests, num_slots, room, num_steps)


LECTURE = (6, 8, 5, 7, 4, 3, 2)  # steps of each answer in the lecture's picture, END included
PLENTY = 10_000


def cases(rng: random.Random) -> list[Case]:
    def case(label, wanted, slots, room=PLENTY, steps=12):
        requests = [(f"S{number}", *request) for number, request in enumerate(wanted, 1)]
        arguments = {"requests": requests, "num_slots": slots, "room": room, "num_steps": steps}
        return Case(arguments, label)

    def drawn(count, shortest=2, longest=6, arrivals=(0, 0)):
        came = sorted(rng.randint(*arrivals) for _ in range(count))
        return [(step, rng.randint(1, 9), rng.randint(shortest, longest)) for step in came]

    several, prompt, answer = rng.randint(2, 3), rng.randint(3, 5), rng.randint(3, 5)
    need = prompt + answer - 1
    alike = [(0, prompt, answer)]
    long, short = (0, 3 * need, 3), (0, 1, 2)
    return [
        case("the lecture's picture", [(0, 1, length) for length in LECTURE], 4, steps=8),
        case("other lengths", drawn(rng.randint(6, 8)), several),
        case("one token", [(0, 2, 1), *drawn(3), (0, 2, 1), (0, 2, 1)], 2),
        case("later arrivals", [(0, 1, 2), *drawn(4, arrivals=(2, 9)), (10, 2, 2)], several),
        case("little room", 6 * alike, 4, room=2 * need + rng.randint(1, need - 1), steps=16),
        case("room to the last token", 5 * alike, 3, room=2 * need),
        case("a short one behind a long one", [*alike, long, short, *alike], 3, room=3 * need + 3, steps=14),
        case("one that can never fit", [*alike, (0, 9 * need, 2), *alike], 2, room=3 * need),
        case("many requests", drawn(25, 1, 8, (0, 20)), 4, room=40, steps=40),
    ]


def _empties_the_list(requests, num_slots, room, num_steps):
    grid = continuous_batching(requests, num_slots, room, num_steps)
    requests.clear()
    return grid


EXERCISE = Exercise(
    name="03.continuous_batching",
    function="continuous_batching",
    title="A scheduler, step by step",
    points=14,
    minutes=30,
    level=4,
    asks=ASKS,
    signature="continuous_batching(requests, num_slots, room, num_steps)",
    cases=cases,
    reference=continuous_batching,
    comparison=Picture(),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("waits for the whole batch", replace(RIGHT, together=True), "the lecture's picture"),
        Mutant("fills a slot a step late", replace(RIGHT, late=1), "the lecture's picture"),
        Mutant("admits one request a step", replace(RIGHT, most_admitted=1), "the lecture's picture"),
        Mutant(
            "counts END as one more",
            replace(RIGHT, longer=1),
            "the lecture's picture",
            "END is the last token of an answer, not one behind it: of 6 tokens, 5 show the name.",
        ),
        Mutant("takes the highest slot", replace(RIGHT, lowest=False), "the lecture's picture"),
        Mutant("admits who has not come", replace(RIGHT, arrives=False), "later arrivals"),
        Mutant("admits without room", replace(RIGHT, looks_at_room=False), "little room"),
        Mutant("has room for prompts alone", replace(RIGHT, whole_answer=False), "little room"),
        Mutant("does not give room back", replace(RIGHT, gives_back=False), "little room"),
        Mutant("keeps a token free", replace(RIGHT, least_left=1), "room to the last token"),
        Mutant("lets a short one overtake", replace(RIGHT, overtakes=True), "a short one behind a long one"),
        Mutant("waits for what can never fit", replace(RIGHT, refuses=False), "one that can never fit"),
        Mutant("empties the list", _empties_the_list, NoMutation().name),
    ),
)
