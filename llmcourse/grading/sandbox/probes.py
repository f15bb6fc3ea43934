"""Proof that the sandbox holds on this system: everything that must not work is tried, in it.

Each trial is a process of its own, and they run at the same time. They are started by a fresh
interpreter, in a namespace if that is the tier, as a student's code is started by the fork server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmcourse.grading.sandbox.policy import PACKAGE, UIDS, Policy, Tier, default_readable, worker_uid

if TYPE_CHECKING:
    from llmcourse.grading.sandbox.attempts import Situation
    from llmcourse.grading.sandbox.trial import Outcome

ALL_LIMIT_S, TRIAL_LIMIT_S, IMPORT_LIMIT_S = 60.0, 5.0, 40.0
PROBE_MEMORY_BYTES = 256 * 2**20
IMPORT_MEMORY_BYTES = 16 * 2**30  # PyTorch's libraries for GPUs take gigabytes of addresses
# As for the fork server: this very package, and nothing that lies beside it.
BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); import llmcourse; del sys.path[0]; "
    "from llmcourse.grading.sandbox.probes import main; main()"
)


@dataclass(frozen=True)
class Probe:
    """Args:
    name: what was tried.
    ok: it was refused, if a student's code must not do it; it worked, if it must.
    detail: with which error, or what went wrong.
    """

    name: str
    ok: bool
    detail: str


def run_probes(tier: Tier) -> list[Probe]:
    """Tries the sandbox of a tier: about 45 trials in some seconds.

    One probe, not ok, stands for all if they cannot be started.
    """
    if tier == Tier.NONE:
        return [Probe("isolation", False, "none: a student's code could do all that you can")]
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.realpath(folder)
        os.chmod(root, 0o711)
        try:
            done = subprocess.run(
                command(tier, root), capture_output=True, timeout=ALL_LIMIT_S, env=_environment(), check=False
            )
            return [Probe(**found) for found in json.loads(done.stdout)]
        except json.JSONDecodeError:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
            return [Probe("isolation", False, f"the probes ended with status {done.returncode}: {said[-1]}")]
        except (OSError, subprocess.TimeoutExpired) as error:
            return [Probe("isolation", False, f"the probes could not be run: {error}")]


def command(tier: Tier, root: str) -> list[str]:
    """The command line that prints the probes of a tier as JSON, using the folder `root`."""
    home = os.path.expanduser("~")
    words = [sys.executable, "-s", "-P", "-c", BOOT, str(PACKAGE.parent), str(int(tier)), root, home]
    if tier < Tier.NAMESPACE:
        return words
    from llmcourse.grading.sandbox.bubblewrap import wrap

    return wrap(words, root)


def main() -> None:
    """`python -c … PACKAGE_FOLDER TIER ROOT HOME`: the probes, printed as JSON."""
    _, _, tier, root, home = sys.argv
    print(json.dumps([asdict(probe) for probe in probe_all(Tier(int(tier)), root, home)]))


def probe_all(tier: Tier, root: str, home: str) -> list[Probe]:
    """Starts every trial, then gathers what came of them, in the same order."""
    from llmcourse.grading.sandbox.attempts import ATTEMPTS
    from llmcourse.grading.sandbox.excesses import ENDLESS, EXCESSES
    from llmcourse.grading.sandbox.needs import HEAVY, NEEDS
    from llmcourse.grading.sandbox.trial import Trial

    kinds = (  # the slowest first
        (HEAVY, worked, IMPORT_LIMIT_S, {"memory_bytes": IMPORT_MEMORY_BYTES}),
        (ENDLESS, was_ended, TRIAL_LIMIT_S, {"cpu_s": 1}),
        (NEEDS, worked, TRIAL_LIMIT_S, {}),
        (ATTEMPTS, worked, TRIAL_LIMIT_S, {}),
        (EXCESSES, worked, TRIAL_LIMIT_S, {}),
    )
    started = []
    for attempts, verdict, limit_s, changes in kinds:
        for name, attempt in attempts.items():
            with situation(tier, root, home, len(started)) as here:
                here = replace(here, policy=replace(here.policy, **changes))
                trial = Trial(here.policy, lambda attempt=attempt, here=here: attempt(here), limit_s)
            started.append((name, verdict, trial))
    return [Probe(name, *verdict(trial.outcome())) for name, verdict, trial in started]


@contextmanager
def situation(tier: Tier, root: str, home: str, number: int) -> Iterator[Situation]:
    """Plants what one trial is to attack, and holds a file open that it must not inherit.

    Args:
        root: a folder where a folder of this number can be made.
    """
    from llmcourse.grading.sandbox.attempts import Situation

    folder = Path(root, str(number))
    for name, mode in (("", 0o711), ("scratch", 0o700), ("other", 0o777), ("shelf", 0o777)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    other, book = folder / "other" / "answers", folder / "shelf" / "book"
    for file in (other, book):
        file.write_text("text")
        file.chmod(0o666)
    policy = Policy(
        readable=(*default_readable(), str(folder / "shelf")),
        scratch=str(folder / "scratch"),
        memory_bytes=PROBE_MEMORY_BYTES,
        uid=worker_uid(UIDS - 1 - number),  # the fork server's begin at the other end
        tier=tier,
    )
    with other.open() as secret:
        yield Situation(policy, os.getpid(), home, str(other), str(book), secret.fileno())


Verdict = Callable[["Outcome"], tuple[bool, str]]


def worked(outcome: Outcome) -> tuple[bool, str]:
    """The trial came to its end as it should."""
    if outcome.late:
        return False, "no answer in time"
    if outcome.text is None:
        return False, f"ended by signal {outcome.signal}"
    return outcome.returned, outcome.text


def was_ended(outcome: Outcome) -> tuple[bool, str]:
    """The kernel ended the trial before we did."""
    if outcome.late or not outcome.signal:
        return False, outcome.text or "it was not stopped"
    return True, f"ended by signal {outcome.signal}"


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
