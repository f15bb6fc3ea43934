"""As whom a test runs what it tries: root, who becomes somebody else in the sandbox, or an ordinary user."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from llmcourse.grading.sandbox.policy import Policy, Tier, default_readable, worker_uid
from llmcourse.grading.sandbox.trial import Outcome, Trial

ORDINARY = 1000
# Far from what graders use that run at the same time, and one after the other: threads of a process
# that has just been killed still count.
SLOTS = itertools.cycle(range(150, 250))
ROOT = os.geteuid() == 0

both = pytest.mark.parametrize("person", ["root", "ordinary"])
needs_root = pytest.mark.skipif(not ROOT, reason="only root can become somebody else")


def become_ordinary() -> None:
    """Root turns into an ordinary user; one who is, stays."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(ORDINARY)
        os.setuid(ORDINARY)


@contextmanager
def scratch(person: str) -> Iterator[str]:
    """A scratch folder of this person's, below one that all may pass through."""
    folder = os.path.realpath(tempfile.mkdtemp())
    try:
        os.chmod(folder, 0o711)
        inner = os.path.join(folder, "scratch")
        os.mkdir(inner, 0o700)
        if person == "ordinary" and ROOT:
            os.chown(inner, ORDINARY, ORDINARY)
        yield inner
    finally:
        shutil.rmtree(folder)


def tried(
    person: str,
    action: Callable[[], str],
    confined: bool = True,
    limit_s: float = 60.0,
    prepare: Callable[[], None] = lambda: None,
    **changes: object,
) -> Outcome:
    """What comes of an action inside the sandbox, or outside of it.

    Args:
        prepare: is done as that person, before.
        changes: to the policy.
    """
    if person == "root" and not ROOT:
        pytest.skip("only root can become somebody else")

    def first() -> None:
        if person == "ordinary":
            become_ordinary()
        prepare()

    with scratch(person) as folder:
        uid = worker_uid(next(SLOTS)) if person == "root" else None
        policy = Policy(readable=default_readable(), scratch=folder, uid=uid, tier=Tier.LANDLOCK)
        policy = replace(policy, **changes)
        return Trial(policy if confined else None, action, limit_s, first).outcome()


def value(outcome: Outcome) -> str:
    """What an action returned, which must not have failed."""
    assert outcome.returned, outcome
    return outcome.text
