"""All attacks, and the numbers of the list that they cover."""

from __future__ import annotations

from tests.grading.attacks import (
    ending,
    exhausting,
    files,
    forging,
    hostile_source,
    notebooks,
    spying,
)

ATTACKS = [
    *forging.ATTACKS,
    *ending.ATTACKS,
    *exhausting.ATTACKS,
    *spying.ATTACKS,
    *notebooks.ATTACKS,
    *files.ATTACKS,
    *hostile_source.ATTACKS,
    *hostile_source.KNOWN_LIMITS,
]
# Attacks on a whole batch, which are tests of their own: the grader is killed, a file comes twice.
ON_BATCHES = {43: "test_kill", 44: "test_again"}
BY_NAME = {attack.name: attack for attack in ATTACKS}
