"""All attacks, and the list that they come from: what is tried in each row, and what must come of it."""

from __future__ import annotations

from tests.grading.attacks import (
    ending,
    exhausting,
    files,
    forging,
    hostile_source,
    imitating,
    leaving,
    notebooks,
    spying,
)
from tests.grading.attacks.attack import Attack

ATTACKS = [
    *forging.ATTACKS,
    *imitating.ATTACKS,
    *ending.ATTACKS,
    *exhausting.ATTACKS,
    *spying.ATTACKS,
    *leaving.ATTACKS,
    *notebooks.ATTACKS,
    *files.ATTACKS,
    *hostile_source.ATTACKS,
    *hostile_source.KNOWN_LIMITS,
]
BY_NAME = {attack.name: attack for attack in ATTACKS}

ZERO = "the question that is attacked gets no points, with a reason"
KEPT = "all points are kept, nothing comes of it"
FLAGGED = "it is pointed out"
REJECTED = "the file is rejected, with a reason"
# The rows of the list. An outcome must be that of at least one attack of its row.
ROWS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("an object with an always-true __eq__", (ZERO,)),
    2: ("a subclass of tensor, float or int", (ZERO,)),
    3: ("a transformer of syntax trees that drops asserts", (ZERO,)),
    4: ("showtraceback, run_cell and do_execute replaced", (ZERO,)),
    5: ("PASSED is printed, replies are forged", (ZERO,)),
    6: ("sys.exit and SystemExit", (ZERO,)),
    7: ("os._exit, SIGKILL or SIGSTOP to itself", (ZERO,)),
    8: ("every exception caught, SIGTERM ignored", (ZERO,)),
    9: ("an endless loop or sleep", (ZERO,)),
    10: ("a fork bomb", (ZERO,)),
    11: ("a daemon by two forks and a session of its own", (KEPT,)),
    12: ("a thread bomb", (ZERO,)),
    13: ("50 GB of memory", (ZERO,)),
    14: ("a full disk", (ZERO,)),
    15: ("a million tiny files", (ZERO,)),
    16: ("endless output", (ZERO,)),
    17: ("a reply that is too large, too deep, or a giant number", (ZERO,)),
    18: ("hidden tests read from the disk", (ZERO,)),
    19: ("hidden tests found through frames, gc, In or /proc", (ZERO,)),
    20: ("the gradebook read or written", (ZERO,)),
    21: ("other submissions or the home folder read", (ZERO,)),
    22: ("the network, by every family of sockets", (ZERO,)),
    23: ("kill or ptrace of whoever supervises", (ZERO,)),
    24: ("torch, numpy, json, time and random patched", (ZERO,)),
    25: ("clocks that are faked", (ZERO,)),
    26: ("the library's operation that the exercise forbids", (ZERO,)),
    27: ("a cached, aliased or changed input returned", (ZERO,)),
    28: ("the visible cases learned by heart", (ZERO,)),
    29: ("NaN, infinity, a wrong dtype or shape", (ZERO,)),
    30: ("a test cell edited or deleted", (ZERO, KEPT, FLAGGED)),
    31: ("a cell or an exercise's id twice", (ZERO, FLAGGED)),
    32: ("metadata stripped", (KEPT, ZERO)),
    33: ("a file that is broken, empty, huge or of format 3", (REJECTED,)),
    34: ("a symbolic or hard link", (REJECTED,)),
    35: ("an archive with a trap", (REJECTED,)),
    36: ("a pickle, a .pt or an .npy of objects", (ZERO, FLAGGED)),
    37: ("torch.py, sitecustomize.py, conftest.py or a .pth along with it", (KEPT, FLAGGED)),
    38: ("scripts, SVG and widget state in outputs", (KEPT, ZERO)),
    39: ("terminal codes, bidi characters and formulas", (ZERO, REJECTED)),
    40: ("a student's id that is a path or SQL", (REJECTED,)),
    41: ("the course's package written to", (ZERO,)),
    42: ("things left for other questions and submissions", (ZERO,)),
    43: ("the grader killed in the middle of a batch", ()),
    44: ("the same submission twice", (KEPT, FLAGGED, REJECTED)),
    45: ("a device that is out of memory or broken", (ZERO,)),
}
# Rows about a whole batch, which have tests of their own.
ON_BATCHES = {
    43: ("test_kill", "test_a_killed_grader_goes_on_to_the_same_grades"),
    44: ("suite", "Suite.test_again_nothing_changes"),
}


def attacks_of(number: int) -> list[Attack]:
    """Those of one row."""
    return [attack for attack in ATTACKS if number in attack.numbers]


def outcomes(attack: Attack) -> set[str]:
    """What an attack demands to come of it."""
    if attack.status == "rejected":
        return {REJECTED}
    found = {FLAGGED} if attack.flags else set()
    if attack.zero:
        return found | {ZERO}
    return found | {KEPT} if attack.rest == "pass" else found
