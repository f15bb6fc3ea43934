"""03.block_pool: blocks of memory that several requests may use, each counted by its users."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from llmcourse.grading.compare import Difference, Exact, Parts, show
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.flash_attention.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation

ASKS = r"""
The memory for keys and values is cut into blocks of equal size. A request takes one when it needs it,
wherever it lies, and gives all of them back when it ends. Requests whose texts begin alike *share* the blocks
of their beginning: so each block has a count of its users, and is free when nobody uses it any more.

Write `block_pool(num_blocks, commands)`.

- `num_blocks`: how many blocks there are, numbered from 0. At first nobody uses any.
- `commands`: a list of tuples, carried out one after another:
    - `("allocate", n)`: the `n` free blocks with the lowest numbers get their first user. The result is the
      list of them, in order. If fewer than `n` are free, the result is the text `"out of blocks"`, and nobody
      gets any.
    - `("share", blocks)`: each block of the list, which holds none twice, gets one more user. The result is
      the list of how many users each has now. If one of them is free, the result is `"not in use"`, and
      nothing is changed.
    - `("free", blocks)`: each block of the list loses one user. The result is the list of those that are free
      now, in the order of the list. If one of them is free already, or is in the list twice, the result is
      `"double free"`, and nothing is changed.
- returns `(results, users)`: the result of each command, and how many users each block has at the end.

```python
>>> commands = [("allocate", 2), ("share", [0]), ("free", [0, 1])]
>>> block_pool(4, [*commands, ("allocate", 3), ("allocate", 1)])
([[0, 1], [2], [1], [1, 2, 3], 'out of blocks'], [1, 1, 1, 1])
```
"""

HINTS = (
    "All that has to be remembered is a list with a number for each block: users = [0] * num_blocks. A block "
    "is free when its number is 0.",
    "Look first, then change: each command has one condition under which it does nothing at all. Only when "
    "that does not hold are the counts of the blocks changed.",
    "free = [b for b in range(num_blocks) if users[b] == 0] are the free ones, lowest first, and free[:n] "
    "are those that allocate takes. A list has no element twice where len(set(blocks)) == len(blocks).",
)

HINTS_AT = {
    "blocks that come back": (
        "A block that was freed by its only user can be allocated again, and the lowest free number comes "
        "first."
    ),
    "shared blocks": (
        "Free takes one user away, not all of them: the block is free when the last one is gone."
    ),
    "out of blocks": "Nobody gets any: count the free blocks before the first is taken.",
    "all blocks": "As many as there are is not too many.",
    "freed twice": (
        "The whole list is looked at before the first count is changed: else the blocks before the bad one "
        "are freed by a command that failed."
    ),
    "a block listed twice": (
        "A request has each of its blocks once. A list that holds one twice is a mistake, even where the "
        "block has two users."
    ),
    "a free block that is shared": (
        "What lies in a free block may be overwritten at any time: nobody can share it."
    ),
}


@dataclass(frozen=True)
class Pool:
    """Carries out commands; the parameters are what mutants get wrong.

    Args:
        lowest_first: which of the free blocks are taken.
        checks_count, checks_use, checks_free, checks_twice: whether a command that cannot be is refused.
        half_taken, half_freed: whether one that is refused has been carried out up to where it failed.
        spare: blocks that are never given away.
        share_counts, free_counts: whether users are counted.
        leaks: how many blocks at the end of a list are not given back.
    """

    lowest_first: bool = True
    checks_count: bool = True
    checks_use: bool = True
    checks_free: bool = True
    checks_twice: bool = True
    half_taken: bool = False
    half_freed: bool = False
    spare: int = 0
    share_counts: bool = True
    free_counts: bool = True
    leaks: int = 0

    def __call__(self, num_blocks: int, commands: list) -> tuple[list, list[int]]:
        users = [0] * num_blocks
        return [self.carry_out(users, *command) for command in commands], users

    def carry_out(self, users: list[int], command: str, argument: int | list[int]) -> list[int] | str:
        """The result of one command, which changes the counts of users."""
        return {"allocate": self._allocate, "share": self._share, "free": self._free}[command](
            users, argument
        )

    def _allocate(self, users, count):
        free = [block for block, number in enumerate(users) if not number]
        free = free if self.lowest_first else free[::-1]
        short = self.checks_count and count > len(free) - self.spare
        for block in free[:count] if not short or self.half_taken else ():
            users[block] = 1
        return "out of blocks" if short else free[:count]

    def _share(self, users, blocks):
        if self.checks_use and not all(users[block] for block in blocks):
            return "not in use"
        for block in blocks:
            users[block] += self.share_counts
        return [users[block] for block in blocks]

    def _free(self, users, blocks):
        if self.checks_twice and len(set(blocks)) < len(blocks):
            return "double free"
        bad = next((place for place, block in enumerate(blocks) if not users[block]), None)
        refused = self.checks_free and bad is not None
        end = len(blocks) - self.leaks if not refused else bad if self.half_freed else 0
        for block in blocks[:end]:
            users[block] = max(0, users[block] - 1) if self.free_counts else 0
        return "double free" if refused else [block for block in blocks if not users[block]]


RIGHT = Pool()


@dataclass(frozen=True)
class Results:
    """Of commands, each a list of blocks or why it was refused: to mistake one for the other is no slip."""

    def __call__(self, got: object, expected: list) -> Difference | None:
        each = Exact("command", "place")
        if type(got) is not list:
            return each(got, expected)
        kinds = [{type(one), type(other)} for one, other in zip(got, expected, strict=False)]
        mixed = kinds.index({list, str}) if {list, str} in kinds else len(kinds)
        if mixed == len(kinds):
            return each(got, expected)
        shown, wanted = show(got[mixed]), show(expected[mixed])
        refused = Difference(f"command {mixed}: got {shown}, expected {wanted}", shown, wanted)
        return each(got[:mixed], expected[:mixed]) or refused


def block_pool(num_blocks: int, commands: list[tuple]) -> tuple[list, list[int]]:
    """Counts of users, and nothing else."""
    return RIGHT(num_blocks, commands)


def cases(rng: random.Random) -> list[Case]:
    num = rng.randint(7, 10)
    two = sorted(rng.sample(range(4), 2))

    def case(label, *commands, blocks=num):
        return Case({"num_blocks": blocks, "commands": list(commands)}, label)

    first = rng.randint(2, 3)
    return [
        case("new blocks", ("allocate", first), ("allocate", rng.randint(1, 2))),
        case(
            "blocks that come back", ("allocate", 5), ("free", two), ("allocate", 3), ("free", [4, 5, two[0]])
        ),
        case(
            "shared blocks",
            *(("allocate", 4), ("share", two), ("free", [0, 1, 2, 3]), ("allocate", 2)),
            *(("free", two), ("allocate", 2)),
        ),
        case("out of blocks", ("allocate", 4), ("allocate", num - 3), ("allocate", rng.randint(1, num - 5))),
        case("all blocks", ("allocate", num - 2), ("allocate", 2), ("free", [num - 1]), ("allocate", 1)),
        case(
            "freed twice",
            ("allocate", 4),
            ("free", [two[0]]),
            ("free", [two[1], two[0]]),
            ("free", [num - 1]),
        ),
        case(
            "a block listed twice",
            *(("allocate", 4), ("share", [two[0]]), ("free", [two[1], two[0], two[0]]), ("free", two)),
        ),
        case("a free block that is shared", ("allocate", 2), ("share", [0, num - 1]), ("allocate", 1)),
        case("many commands", *_storm(rng, 12), blocks=12),
    ]


def _storm(rng, num_blocks, count=60):
    """Commands of requests that come, share the beginning of one before them, and go."""
    tables, users, commands = [], [0] * num_blocks, []
    while len(commands) < count:
        command = rng.choice(("allocate", "allocate", "share", "free", "free"))
        if command != "allocate" and not tables:
            continue
        argument = rng.randint(1, 4) if command == "allocate" else list(rng.choice(tables))
        if command == "share":
            argument = argument[: rng.randint(1, len(argument))]
        if command == "free":
            tables.remove(argument)
        result = RIGHT.carry_out(users, command, argument)
        if command == "share" or (command == "allocate" and type(result) is list):
            tables.append(list(result if command == "allocate" else argument))
        commands.append((command, argument))
    return commands


def _mutant(**wrong):
    pool = replace(RIGHT, **wrong)

    def answer(num_blocks, commands):
        return pool(num_blocks, commands)

    return answer


def _sorts_what_is_freed(num_blocks, commands):
    results, users = block_pool(num_blocks, commands)
    given = zip(commands, results, strict=True)
    return [sorted(r) if c == "free" and type(r) is list else r for (c, _), r in given], users


def _stops_when_refused(num_blocks, commands):
    results, _ = block_pool(num_blocks, commands)
    done = next((place for place, result in enumerate(results, 1) if type(result) is str), len(results))
    return block_pool(num_blocks, commands[:done])


def _empties_the_list(num_blocks, commands):
    results = block_pool(num_blocks, commands)
    commands.clear()
    return results


EXERCISE = Exercise(
    name="03.block_pool",
    function="block_pool",
    title="Blocks, counted by their users",
    points=12,
    minutes=20,
    level=2,
    asks=ASKS,
    signature="block_pool(num_blocks, commands)",
    cases=cases,
    reference=block_pool,
    comparison=Parts({"results": Results(), "users": Exact("block")}),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("takes the highest numbers", _mutant(lowest_first=False), "new blocks"),
        Mutant(
            "sorts what is freed",
            _sorts_what_is_freed,
            "blocks that come back",
            "The result of free is in the order of the list that was given, not of the numbers.",
        ),
        Mutant("leaks the last block of a list", _mutant(leaks=1), "blocks that come back"),
        Mutant("frees what others use", _mutant(free_counts=False), "shared blocks"),
        Mutant("does not count who shares", _mutant(share_counts=False), "shared blocks"),
        Mutant("gives what there is", _mutant(checks_count=False), "out of blocks"),
        Mutant(
            "stops at what it refuses",
            _stops_when_refused,
            "out of blocks",
            "A command that is refused has its text as result and changes nothing; the next is carried out.",
        ),
        Mutant("leaks what it took before it refuses", _mutant(half_taken=True), "out of blocks"),
        Mutant("keeps a block to itself", _mutant(spare=1), "all blocks"),
        Mutant("does not see what is freed twice", _mutant(checks_free=False), "freed twice"),
        Mutant("frees half of a list before it refuses", _mutant(half_freed=True), "freed twice"),
        Mutant("does not see a block listed twice", _mutant(checks_twice=False), "a block listed twice"),
        Mutant("shares what is free", _mutant(checks_use=False), "a free block that is shared"),
        Mutant("empties the list of commands", _empties_the_list, NoMutation().name),
    ),
)
