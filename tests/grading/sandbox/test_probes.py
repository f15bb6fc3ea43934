"""The probes find the sandbox whole, and find each hole that is made in it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmcourse.grading.sandbox import (
    bubblewrap,
    enter,
    excesses,
    landlock,
    limits,
    privileges,
    probes,
    seccomp,
)
from llmcourse.grading.sandbox.attempts import ATTEMPTS
from llmcourse.grading.sandbox.excesses import ENDLESS, EXCESSES
from llmcourse.grading.sandbox.needs import HEAVY, NEEDS
from llmcourse.grading.sandbox.policy import Tier
from llmcourse.grading.sandbox.probes import Probe, command, run_probes, situation, was_ended, worked
from llmcourse.grading.sandbox.trial import Trial
from tests.grading.sandbox.people import ORDINARY, ROOT, become_ordinary, both, needs_root

ALL = {**ATTEMPTS, **EXCESSES, **NEEDS}
NUMBER_OF_PROBES = len({**ALL, **ENDLESS, **HEAVY})
needs_bubblewrap = pytest.mark.skipif(bool(bubblewrap.trouble()), reason="bubblewrap does not run here")
tiers = pytest.mark.parametrize("tier", [Tier.LANDLOCK, pytest.param(Tier.NAMESPACE, marks=needs_bubblewrap)])


@pytest.fixture
def root() -> Iterator[str]:
    folder = os.path.realpath(tempfile.mkdtemp())
    os.chmod(folder, 0o711)
    yield folder
    shutil.rmtree(folder)


def broken(found: list[Probe]) -> list[Probe]:
    return [probe for probe in found if not probe.ok]


@tiers
def test_the_sandbox_holds(tier):
    found = run_probes(tier)
    assert broken(found) == []
    assert len({probe.name for probe in found}) == NUMBER_OF_PROBES >= 40


def ordinary_command(words: list[str], folder: str) -> list[str]:
    """Runs a command as an ordinary user, who may enter the folders above this Python."""
    become = f"import os, sys; os.setgroups([]); os.setgid({ORDINARY}); os.setuid({ORDINARY}); "
    become += "os.execv(sys.argv[1], sys.argv[1:])"
    needed = [sys.base_prefix, sys.prefix, str(probes.PACKAGE)]
    closed = {str(p) for path in needed for p in Path(path).parents if not p.stat().st_mode & 1}
    options = ["--dev-bind", "/", "/"]
    for above in sorted(closed):
        options += ["--perms", "0755", "--tmpfs", above]
        for path in needed:
            options += bubblewrap._bind("--ro-bind", path) if above in map(str, Path(path).parents) else []
    os.chown(folder, ORDINARY, ORDINARY)
    return ["bwrap", *options, "--", sys.executable, "-c", become, *words]


@needs_root
@needs_bubblewrap
@tiers
def test_the_sandbox_holds_for_an_ordinary_user(tier, root, monkeypatch):
    monkeypatch.setattr(bubblewrap.os, "geteuid", lambda: ORDINARY)  # whose command line it is
    words = command(tier, root)
    monkeypatch.undo()
    done = subprocess.run(
        ordinary_command(words, root), capture_output=True, env=probes._environment(), timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = [Probe(**probe) for probe in json.loads(done.stdout)]
    assert broken(found) == [] and len(found) == NUMBER_OF_PROBES
    (threads,) = (probe for probe in found if probe.name == "start too many threads")
    assert "wanted" not in threads.detail


def probe(name: str, root: str, confined: bool = True, person: str = "", **changes: object) -> Probe:
    """One probe in this process's own sandbox, which a test may have broken."""
    number = len(os.listdir(root))
    with situation(Tier.LANDLOCK, root, os.path.expanduser("~"), number) as here:
        here = replace(here, policy=replace(here.policy, **changes))
        policy = here.policy
        if person == "ordinary" and ROOT:
            os.chown(policy.scratch, ORDINARY, ORDINARY)

        def first() -> None:
            if person == "ordinary":
                become_ordinary()
            os.chdir(policy.scratch)

        trial = Trial(policy if confined else None, lambda: ALL[name](here), 10.0, first)
        return Probe(name, *worked(trial.outcome()))


# Which probes see nothing wrong without any sandbox, since the system refuses for other reasons.
REFUSED_ANYWAY = {
    "root": set(),
    "ordinary": {
        "read the home folder",
        "list other submissions",
        "change the course package",
        "send its parent a signal",
        "trace another process",
        "read the parent in /proc",
        "become another user",
        "stop or change the system",
        "raise its own limits",
    },
}


@both
@pytest.mark.parametrize("name", [*ATTEMPTS, *EXCESSES])
def test_without_the_sandbox_each_probe_finds_a_hole(name, person, root):
    if person == "root" and not ROOT:
        pytest.skip("an ordinary user has no rights to lose")
    found = probe(name, root, confined=False, person=person)
    if name in REFUSED_ANYWAY[person]:
        return
    assert not found.ok and found.detail.startswith("Hole: "), found


@both
@pytest.mark.parametrize("name", [*NEEDS])
def test_needs_are_met_without_the_sandbox_too(name, person, root):
    assert probe(name, root, confined=False, person=person if ROOT else "ordinary").ok


FILES = {
    "read the home folder",
    "read a file beside its own",
    "list other submissions",
    "read the grader and the solutions",
}


CALLS = {
    "start a process",
    "mount",
    "share memory",
    "slow its parent",
    "TCP and UDP, version 4",
    "change what it may read",
    "run code from memory",
}


@pytest.mark.parametrize(
    ("module", "wall", "found", "left"),
    [
        (landlock.Ruleset, "restrict", FILES | {"write outside of its folder"}, CALLS),
        (seccomp, "restrict", CALLS, FILES),
        (enter, "_close_files", {"read an inherited file"}, {"start a process", *FILES}),
    ],
    ids=["landlock", "seccomp", "files"],
)
@needs_root
def test_a_missing_wall_is_found(module, wall, found, left, root, monkeypatch):
    """And the others stand without it."""
    monkeypatch.setattr(module, wall, lambda *arguments: None)
    assert found == {name for name in found | left if not probe(name, root).ok}


@pytest.mark.parametrize(
    ("wall", "found"),
    [
        ("limit_threads", {"start too many threads"}),
        ("limit_resources", {*EXCESSES} - {"start too many threads"}),
    ],
)
@needs_root
def test_a_missing_limit_is_found(wall, found, root, monkeypatch):
    monkeypatch.setattr(limits, wall, lambda *arguments: None)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= excesses.MANY_FILES:
        found = found - {"open too many files"}  # so many are not allowed here anyway
    if wall == "limit_resources":
        found = found - {"raise its own limits"}  # which an ordinary user cannot, whatever they are
    assert found == {name for name in found if not probe(name, root).ok}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"readable": ("/",)}, FILES | {"read the system's files"}),
        ({"listable": ("/",)}, {"read the home folder", "list other submissions"}),
        ({"readable": (str(probes.PACKAGE),)}, {"read the grader and the solutions"}),
        ({"readable": ("/proc",)}, {"read the parent in /proc"}),
    ],
)
@needs_root
def test_a_policy_that_is_too_wide_is_found(changes, found, root):
    assert found <= {name for name in found | {"read the home folder"} if not probe(name, root, **changes).ok}


def test_a_process_that_is_not_ended_is_found():
    started = time.monotonic()
    late = Trial(None, lambda: str(time.sleep(60)), 0.2).outcome()
    assert time.monotonic() - started < 10
    assert late.late and not was_ended(late)[0] and not worked(late)[0]
    gone = Trial(None, lambda: os.abort()).outcome()
    assert was_ended(gone)[0] and worked(gone) == (False, "ended by signal 6")
    assert not was_ended(Trial(None, lambda: "done").outcome())[0]


def test_a_trial_returns_once_whatever_happens():
    def leave() -> str:
        raise SystemExit(0)

    assert Trial(None, leave).outcome().text == "SystemExit: 0"
    assert Trial(None, lambda: "x" * 10_000).outcome().text == "x" * 4095
    assert not Trial(None, lambda: 1 / 0).outcome().returned


def test_no_tier_and_no_answer_are_findings(monkeypatch):
    (nothing,) = run_probes(Tier.NONE)
    assert not nothing.ok
    monkeypatch.setattr(probes, "command", lambda tier, root: ["/bin/sh", "-c", "echo trouble >&2; exit 3"])
    (failed,) = run_probes(Tier.LANDLOCK)
    assert not failed.ok and "status 3: trouble" in failed.detail
    monkeypatch.setattr(probes, "command", lambda tier, root: ["/nothing/here"])
    (missing,) = run_probes(Tier.LANDLOCK)
    assert not missing.ok and "could not be run" in missing.detail


def test_root_keeps_a_capability_only_while_it_must(monkeypatch, root):
    monkeypatch.setattr(privileges, "needs_read_search", lambda paths: False)
    assert probe("use its scratch folder", root).ok
