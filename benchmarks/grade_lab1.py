"""How fast lab 1 is graded, how often a right answer is found wrong, and what kills do to a batch.

    python benchmarks/grade_lab1.py [--submissions 100] [--references 1000] [--kills 1000]

appends to benchmarks/results/<device>.jsonl: submissions graded a second in one batch, workers started a
second, gradings of the reference without a false zero, kills survived. Takes about half an hour.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch
from record import record

from llmcourse.grading import assembly, judge
from llmcourse.grading.intake.submissions import Submission
from llmcourse.grading.process.nursery import Nursery
from llmcourse.grading.sandbox.policy import Tier, available_tier

ROOT = Path(__file__).resolve().parent.parent
SOLUTION = (ROOT / "solutions" / "01_decoding.ipynb").read_bytes()
LAB = assembly.judged_lab("01_decoding")
CPU = torch.device("cpu")
BATCH_OF_KILLS = 200


class PeakMemory:
    """The most memory that a process and its descendants held, shared pages counted once."""

    def __init__(self):
        self.bytes, self._done = 0, threading.Event()

    def __enter__(self) -> PeakMemory:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, total)


def batch(count: int, tier: Tier) -> None:
    """The command itself over a folder of solutions, every one a file of its own."""
    with tempfile.TemporaryDirectory() as folder:
        handed_in = Path(folder, "handed_in")
        handed_in.mkdir()
        book = json.loads(SOLUTION)
        for number in range(count):
            book["metadata"]["student"] = number
            (handed_in / f"student{number:03d}.ipynb").write_text(json.dumps(book), encoding="utf-8")
        command = [sys.executable, "-m", "llmcourse", "grade", handed_in, "--out", f"{folder}/out"]
        options = ["--lab", LAB.name, "--quiet", "--tier", tier.name.lower(), "--jobs", "2"]
        started = time.perf_counter()
        with PeakMemory() as peak:
            subprocess.run([*command, *options], check=False, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        grades = json.loads(Path(folder, "out", "grades.json").read_text(encoding="utf-8"))["grades"]
    full = sum(grade["points"] == grade["max_points"] for grade in grades)
    record(
        "grade_lab1",
        count / seconds,
        "submissions/s",
        device=CPU,
        seconds_each=round(seconds / count, 3),
        jobs=2,
        tier=tier.name.lower(),
        submissions=count,
        full_points=full,
        peak_memory_bytes=peak.bytes,
    )


def starts(tier: Tier, count: int = 200) -> None:
    """Until a question's process has entered its sandbox and answered."""
    times_s = []
    with Nursery(tier) as nursery:
        for _ in range(count):
            started = time.perf_counter()
            with nursery.worker([]):
                times_s.append(time.perf_counter() - started)
    median = statistics.median(times_s)
    quartiles = statistics.quantiles(times_s, n=4)
    record(
        "grade_worker_start",
        1 / median,
        "workers/s",
        spread=(quartiles[2] - quartiles[0]) / median,
        device=CPU,
        median_ms=round(median * 1e3, 2),
        worst_ms=round(max(times_s) * 1e3, 2),
        tier=tier.name.lower(),
    )


def references(count: int, tier: Tier) -> None:
    """Gradings of the solution, each with seeds of its own: every point below full is a false one."""
    submission = Submission.of("reference", SOLUTION)

    def one_job(share: int) -> list[str]:
        wrong = []
        with Nursery(tier) as nursery:
            for _ in range(share):
                result = judge.grade(submission, LAB, nursery, secrets.token_bytes(32))
                wrong += [f"{q.exercise}: {q.reason}" for q in result.questions if q.status != "pass"]
        return wrong

    with ThreadPoolExecutor(2) as pool:
        wrong = [line for found in pool.map(one_job, [count - count // 2, count // 2]) for line in found]
    record("grade_references", count, "gradings", device=CPU, false_zeros=len(wrong), reasons=wrong[:10])


def kills(count: int) -> None:
    """SIGKILL at random instants over batches of 200 with a stand-in for the judge."""
    command = [sys.executable, "-m", "tests.grading.kills", str(count), str(BATCH_OF_KILLS)]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    record("grade_kills", count, "kills", device=CPU, **json.loads(found.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--submissions", type=int, default=100)
    parser.add_argument("--references", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=1000)
    options = parser.parse_args()
    tier, _ = available_tier()
    starts(tier)
    batch(options.submissions, tier)
    kills(options.kills)
    references(options.references, tier)


if __name__ == "__main__":
    main()
