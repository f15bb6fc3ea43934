"""Grades a folder of attacks for real, with the command line, and watches what the machine does meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llmcourse.grading.sandbox.policy import Tier, available_tier
from tests.grading.attacks.attack import LAB, Attack, Book, Places, Scene, cell_of

REPOSITORY = Path(__file__).resolve().parents[3]
SOLUTION = REPOSITORY / "solutions" / f"{LAB}.ipynb"
ORDINARY_UID = 60_700  # of no account, and of no worker
TOKEN = "canary-4711-of-the-attack-suite"
LIMIT_S = 600
JOBS = 2
# Shared folders of the machine, in which attacks try to leave something.
SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")


def honest_book() -> Book:
    """The solution's notebook: what an honest student who is always right hands in."""
    return json.loads(SOLUTION.read_text(encoding="utf-8"))


def half(points: dict[str, int]) -> set[str]:
    """Exercises worth exactly half of all points."""
    sums: dict[int, set[str]] = {0: set()}
    for name, worth in points.items():
        sums = {total + worth: chosen | {name} for total, chosen in sums.items()} | sums
    return sums[sum(points.values()) // 2]


def wrong_in(exercises: set[str]) -> Book:
    """The honest notebook, but for answers to these exercises."""
    book = honest_book()
    for exercise in exercises:
        cell = cell_of(book, exercise)
        source = "".join(cell["source"])
        names = [
            line.split("(")[0].removeprefix("def ") for line in source.splitlines() if line.startswith("def ")
        ]
        cell["source"] = f"{source}\n\ndef {names[-1]}(*arguments, **options):\n    return None\n"
    return book


@contextmanager
def places(uid: int | None) -> Iterator[Places]:
    """Folders for one grading, with secrets in them, that the user `uid` owns."""
    base = Path(os.path.realpath(tempfile.mkdtemp(prefix="attacks-")))
    try:
        made = {name: base / name for name in ("submissions", "home", "temporary", "canaries")}
        base.chmod(0o755)
        for path in made.values():
            path.mkdir(mode=0o755)
        made["canaries"].chmod(0o777)
        made["home"].chmod(0o700)
        (made["home"] / "secret.txt").write_text(TOKEN)
        target = made["canaries"] / "target"
        target.write_text(TOKEN)
        target.chmod(0o666)
        (base / "grades").mkdir()
        yield Places(**made, out=base / "grades" / "out")
    finally:
        shutil.rmtree(base, ignore_errors=True)


def hand_over(where: Places, uid: int | None) -> None:
    """Makes a user the owner of what the one who grades owns; nobody for None."""
    if uid is None:
        return
    for folder in (where.submissions, where.home, where.temporary, where.out.parent):
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, uid, follow_symlinks=False)


@dataclass
class Watch(threading.Thread):
    """Looks at the processes of a grading while it runs.

    Args:
        mark: a text in the environment of each of its processes, and of no others.

    Attributes:
        largest: bytes of memory that one process had at most.
        most: how many processes there were at most.
    """

    mark: bytes
    largest: int = 0
    most: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self):
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        while not self.done.wait(0.1):
            pids = marked(self.mark)
            self.most = max(self.most, len(pids))
            self.largest = max([self.largest, *map(own_memory, pids)])


def marked(mark: bytes) -> list[int]:
    """Processes that run and have `mark` in their environment."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if mark in Path(f"/proc/{int(name)}/environ").read_bytes():
                found.append(int(name))
    return found


def own_memory(pid: int) -> int:
    """Bytes that no other process shares, but for shared memory."""
    wanted = ("RssAnon:", "RssShmem:", "VmSwap:")
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(wanted))
    return 0


@dataclass(frozen=True)
class Batch:
    """What a grading came to.

    Args:
        results: of each student, as grades.json has them.
        code, summary, stderr: of the command.
        again: results of the same command, given once more; `again_s` is what it took.
        running: processes that were left.
        left: files and folders that were left.
        outputs: the text of each file in the gradebook's folder.
        watch: what was seen while it ran.
    """

    results: dict[str, dict]
    code: int
    summary: dict
    stderr: str
    seconds: float
    again: dict[str, dict]
    again_summary: dict
    again_s: float
    running: list[int]
    left: list[str]
    outputs: dict[str, str]
    watch: Watch

    def of(self, attack: Attack) -> dict:
        """The result of one attack."""
        if attack.found_by is None:
            return self.results[attack.name]
        (found,) = filter(attack.found_by, self.results.values())
        return found


def command(places: Places, tier: str, uid: int | None, jobs: int = JOBS) -> tuple[list[str], dict[str, str]]:
    """The command line of the grading, and its environment."""
    words = [sys.executable, "-m", "llmcourse", "grade", str(places.submissions), "--out", str(places.out)]
    words += ["--lab", LAB, "--json", "--jobs", str(jobs), "--tier", tier]
    if uid is not None:
        words = [sys.executable, str(Path(__file__).with_name("ordinary.py")), str(uid), *words]
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    made = {"HOME": places.home, "TMPDIR": places.temporary, "PYTHONPATH": REPOSITORY}
    texts = {"ATTACK_CANARY": TOKEN, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
    return words, kept | {name: str(path) for name, path in made.items()} | texts


def graded(attacks: Sequence[Attack], extra: dict[str, Book], tier: str, uid: int | None) -> Batch:
    """Hands everything in, grades it twice, and looks at what is left."""
    with places(uid) as where:
        for attack in attacks:
            attack.place(Scene(honest_book(), where, attack.name))
        for student, book in extra.items():
            Scene(book, where, student).write(book)
        hand_over(where, uid)
        before = (where.canaries / "target").stat()
        shared = {path for path in SHARED if os.path.isdir(path)}
        watch = Watch(str(where.temporary).encode())
        watch.start()
        first = run(where, tier, uid)
        seconds = first.seconds
        running = [pid for pid in marked(watch.mark) if _stays(pid)]
        watch.done.set()
        results = read_grades(where.out)
        second = run(where, tier, uid)
        after = (where.canaries / "target").stat()
        left = [str(path.relative_to(where.temporary)) for path in where.temporary.rglob("*")]
        left += [
            path.name for path in where.canaries.iterdir() if path.name not in ("target", "original.ipynb")
        ]
        left += [str(path) for folder in shared for path in Path(folder).glob("attack-left*")]
        left += [str(p) for p in (REPOSITORY, REPOSITORY / "llmcourse") for p in p.glob("*attack-left*")]
        if (before.st_mtime_ns, before.st_mode, before.st_size) != (
            after.st_mtime_ns,
            after.st_mode,
            after.st_size,
        ):
            left.append("target was changed")
        return Batch(
            results,
            first.code,
            first.summary,
            first.stderr,
            seconds,
            read_grades(where.out),
            second.summary,
            second.seconds,
            running,
            left,
            {str(p.relative_to(where.out)): _text(p) for p in where.out.rglob("*") if p.is_file()},
            watch,
        )


TELL_TIER = """
from llmcourse.grading.sandbox.policy import available_tier
best, reasons = available_tier()
print(best.name, *reasons, sep="\\n")
"""


def tier_of(uid: int | None) -> tuple[Tier, str]:
    """The best tier that a user has here, and why not a better one: an ordinary user may have less."""
    if uid is None:
        best, reasons = available_tier()
        return best, "; ".join(reasons)
    words = [sys.executable, str(Path(__file__).with_name("ordinary.py")), str(uid), sys.executable, "-c"]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]}
    done = subprocess.run([*words, TELL_TIER], cwd="/", env=environment, capture_output=True, text=True)
    if done.returncode:
        return Tier.NONE, f"cannot run as an ordinary user: {done.stderr.strip()[-200:]}"
    best, *reasons = done.stdout.splitlines()
    return Tier[best], "; ".join(reasons)


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    code: int
    summary: dict
    stderr: str
    seconds: float


def run(places: Places, tier: str, uid: int | None, *options: str) -> Ran:
    """The command of the grading, once."""
    words, environment = command(places, tier, uid)
    words += options
    started = time.monotonic()
    with subprocess.Popen(
        words,
        env=environment,
        cwd=places.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            out, err = program.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            raise
    summary = json.loads(out) if out.strip() else {}
    return Ran(program.returncode, summary, err, time.monotonic() - started)


def read_grades(out: Path) -> dict[str, dict]:
    """grades.json, by student."""
    path = out / "grades.json"
    if not path.exists():
        return {}
    return {grade["student"]: grade for grade in json.loads(path.read_text(encoding="utf-8"))["grades"]}


def _stays(pid: int, wait_s: float = 2.0) -> bool:
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        if not os.path.exists(f"/proc/{pid}"):
            return False
        time.sleep(0.02)
    return True


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")
