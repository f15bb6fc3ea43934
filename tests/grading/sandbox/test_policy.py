"""What may be read, whether a policy makes sense, and which tier is found."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

import llmcourse.decoding
import llmcourse.model
from llmcourse.grading import sandbox
from llmcourse.grading.sandbox import bubblewrap, landlock, policy, seccomp, trial
from llmcourse.grading.sandbox.policy import (
    UIDS,
    Policy,
    Tier,
    available_tier,
    default_listable,
    default_readable,
    worker_uid,
)
from tests.grading.sandbox.people import ROOT, both, tried, value


def covered(path: str, allowed: tuple[str, ...]) -> bool:
    parents = {path, *map(str, Path(path).parents)}
    return bool(parents & set(allowed))


def test_libraries_and_the_course_may_be_read_but_not_the_grader():
    import numpy
    import torch

    readable = default_readable()
    for module in (os, torch, numpy, llmcourse.model):
        assert covered(os.path.realpath(module.__file__), readable), module
    for module in (sandbox, trial, llmcourse.decoding):
        assert not covered(os.path.realpath(module.__file__), readable), module
    assert not covered(str(policy.PACKAGE.parent / "solutions"), readable)
    assert not any(
        covered(path, readable) for path in ("/etc/passwd", "/proc/self/mem", os.path.expanduser("~"))
    )


def test_only_real_paths_are_named():
    paths = (*default_readable(), *default_listable())
    assert [path for path in paths if os.path.realpath(path) != path] == []
    assert str(policy.PACKAGE) in default_listable() and str(policy.PACKAGE.parent) not in default_listable()


def test_a_package_among_installed_ones_is_taken_apart(tmp_path, monkeypatch):
    """As after `pip install llmcourse`, where the grader lies inside of site-packages."""
    package = tmp_path / "site-packages" / "llmcourse"
    for name in ("grading/judge.py", "decoding/loop.py", "model.py", "training/recipes.py", "../torch/a.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    (package / "link.py").symlink_to(package / "grading" / "judge.py")
    monkeypatch.setattr(policy, "HIDDEN", (package / "grading", package / "decoding"))
    readable, listable = [], []
    policy._split(tmp_path, readable, listable)
    named = {str(Path(path).relative_to(tmp_path / "site-packages")) for path in readable}
    assert named == {"torch", "llmcourse/model.py", "llmcourse/training"}
    assert listable == [str(tmp_path), str(package.parent), str(package)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"memory_bytes": 0}, "memory_bytes must be at least 1, got 0"),
        ({"cpu_s": -1}, "cpu_s"),
        ({"threads": 0}, "threads"),
        ({"file_bytes": 0}, "file_bytes"),
        ({"uid": 0}, "uid must be in"),
        ({"uid": 2**32 - 1}, "uid must be in"),
        ({"scratch": "here"}, "absolute, got 'here'"),
        ({"readable": ("x",)}, "absolute"),
    ],
)
def test_a_policy_is_checked_when_made(changes, named):
    with pytest.raises(ValueError, match=named):
        Policy(**{"readable": (), "scratch": "/x", **changes})


def test_user_ids_differ_and_are_roots_only():
    found = [worker_uid(slot) for slot in range(UIDS)]
    assert len(set(found)) == (UIDS if ROOT else 1)
    assert all(60706 <= uid <= 61183 for uid in found) if ROOT else found[0] is None
    for slot in (-1, UIDS):
        with pytest.raises(ValueError, match="slot"):
            worker_uid(slot)


def test_the_tier_is_found_by_trying():
    tier, reasons = available_tier()
    assert tier == (Tier.NAMESPACE if not bubblewrap.trouble() else Tier.LANDLOCK)
    assert len(reasons) == (tier < Tier.NAMESPACE)


@both
def test_an_ordinary_user_and_root_find_landlock(person):
    assert value(tried(person, trial.landlock_trouble, confined=False)) == ""


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSYS, "Linux 5.13"),
        (errno.EOPNOTSUPP, "lsm="),
        (errno.EPERM, "container's seccomp profile"),
    ],
)
def test_without_landlock_there_is_no_tier(monkeypatch, number, words):
    def missing() -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(landlock, "version", missing)
    tier, reasons = available_tier()
    assert tier == Tier.NONE and words in reasons[0]


def test_a_sandbox_that_does_not_hold_is_no_tier(monkeypatch):
    monkeypatch.setattr(seccomp, "restrict", lambda: None)
    tier, reasons = available_tier()
    assert tier == Tier.NONE and "a process forked" in reasons[0]
    monkeypatch.undo()
    monkeypatch.setattr(landlock.Ruleset, "restrict", lambda self: None)
    tier, reasons = available_tier()
    assert tier == Tier.NONE and "a folder was listed" in reasons[0]


def test_other_systems_and_machines_have_no_tier(monkeypatch):
    monkeypatch.setattr("llmcourse.grading.sandbox.kernel.MACHINES", ("vax",))
    tier, reasons = available_tier()
    assert tier == Tier.NONE and "x86-64 or aarch64" in reasons[0]
    monkeypatch.setattr(sys, "platform", "darwin")
    tier, reasons = available_tier()
    assert tier == Tier.NONE and "darwin" in reasons[0]


def test_bubblewrap_that_is_missing_or_too_old_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)
    tier, reasons = available_tier()
    assert tier == Tier.LANDLOCK and "install" in reasons[0]
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho 'bwrap: Unknown option --size' >&2; exit 1\n")
    old.chmod(0o755)
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: str(old))
    tier, reasons = available_tier()
    assert tier == Tier.LANDLOCK and "0.7" in reasons[0]
