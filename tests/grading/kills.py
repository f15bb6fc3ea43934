"""Kills a grader again and again, and looks at what its gradebook holds after each time.

    python -m tests.grading.kills KILLS SUBMISSIONS

A batch is forked, killed with SIGKILL at a random instant, and started once more, until it is done;
then the next batch begins in a new folder. Prints what was found as JSON.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from llmcourse.grading import batch
from llmcourse.grading.records import reports
from llmcourse.grading.records.folder import opened
from llmcourse.grading.records.gradebook import FILE_NAME, Gradebook
from tests.grading.grades import LAB, FakeLab, Handed, graded, no_nursery

START_S, EACH_S = 0.02, 0.0008  # about what a batch that is done takes, and each of its reports


def submissions(count):
    return [Handed(f"s{number:03d}", f"{number * 7919:04x}") for number in range(count)]


def run(folder, handed):
    """What `llmcourse grade` does, with a stand-in for the judge."""
    with opened(folder) as gradebook:
        batch.run(handed, FakeLab(), gradebook, grade=graded, nursery=no_nursery, version="v1", jobs=2)
        reports.write(gradebook, folder)


def killed(folder, handed, after_s):
    """Runs a batch in a process of its own; whether it was killed before its end."""
    child = os.fork()
    if child == 0:
        try:
            run(folder, handed)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a batch failed by itself")
    return os.WIFSIGNALED(status)


def state(folder):
    """The secret, and of every student what was found; empty before there is a gradebook."""
    if not (folder / FILE_NAME).exists():
        return None, {}
    with Gradebook(folder / FILE_NAME) as gradebook:
        rows = gradebook.rows(LAB)
        return gradebook.secret(), {row.result.student: (row.result, row.graded_at) for row in rows}


def one_batch(folder, handed, kills, chance):
    """Kills and starts again until the batch is done or there are enough kills; what went wrong."""
    secret, before, troubles, count = None, {}, [], 0
    while count < kills:
        done = not killed(folder, handed, chance.uniform(0, START_S + EACH_S * len(handed)))
        count += not done
        new_secret, after = state(folder)
        if secret not in (None, new_secret):
            troubles.append("the secret changed")
        troubles += [f"{name} was lost" for name in before if name not in after]
        troubles += [f"{name} changed" for name in before if name in after and after[name] != before[name]]
        secret, before = new_secret, after
        if done:
            break
    run(folder, handed)
    secret, after = state(folder)
    for submission in handed:
        expected = graded(submission, FakeLab(), None, secret)
        if submission.student not in after or after[submission.student][0] != expected:
            troubles.append(f"{submission.student} has a wrong grade")
    pages = len(os.listdir(folder / "feedback"))
    rows = len((folder / "grades.csv").read_text(encoding="utf-8-sig").splitlines())
    if (pages, rows, len(after)) != (len(handed), len(handed) + 1, len(handed)):
        troubles.append(f"{pages} pages and {rows} lines of {len(handed)} students")
    return count, troubles


def main(kills, count):
    chance = random.Random(0)
    done, batches, troubles = 0, 0, []
    while done < kills:
        with tempfile.TemporaryDirectory() as folder:
            more, found = one_batch(Path(folder), submissions(count), kills - done, chance)
        done, batches, troubles = done + more, batches + 1, troubles + found
    return {"kills": done, "batches": batches, "troubles": troubles}


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
