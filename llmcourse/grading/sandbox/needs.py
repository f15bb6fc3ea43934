"""What an honest answer must be able to do: a sandbox that stops it would give false zeros."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import threading

from llmcourse.grading.sandbox.attempts import Attempt, Situation

LATE_MODULES = ("colorsys", "wave", "sqlite3", "decimal", "zoneinfo")


def use_scratch(situation: Situation) -> str:
    os.makedirs("a/b")
    with open("a/b/file", "w") as file:
        file.write("text")
    os.rename("a/b/file", "a/file")
    with tempfile.TemporaryFile(dir=".") as file:
        file.write(b"bytes")
    with open("a/file", "r+") as file:
        file.truncate(2)
    with open(os.path.join(situation.policy.scratch, "a", "file")) as file:
        text = file.read()
    os.remove("a/file")
    os.rmdir("a/b")
    return f"read {text!r} again"


def read_book(situation: Situation) -> str:
    with open(situation.book) as file:
        return f"{len(file.read())} characters"


def import_late(situation: Situation) -> str:
    found = [name for name in LATE_MODULES if importlib.util.find_spec(name)]
    for name in found:
        importlib.import_module(name)
    return ", ".join(found)


def use_threads(situation: Situation) -> str:
    sums = []
    threads = [threading.Thread(target=lambda: sums.append(sum(range(1000)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return f"{len(sums)} threads"


def end_itself(situation: Situation) -> str:
    os.kill(os.getpid(), 0)
    return f"process {os.getpid()}"


def compute(situation: Situation) -> str:
    """Imports PyTorch inside the sandbox and uses each of its libraries once, in several threads."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(2)
    x = torch.randn(256, 256)
    probabilities = F.softmax(x @ x.T, dim=-1).sort(descending=True).values
    torch.multinomial(probabilities, 2)
    torch.linalg.svd(x)
    F.linear(x, x.requires_grad_()).sum().backward()
    numpy = sys.modules["numpy"]
    numpy.linalg.inv(numpy.eye(8))
    torch.save(x, "x.pt")
    return f"PyTorch {torch.__version__}, NumPy {numpy.__version__}"


NEEDS: dict[str, Attempt] = {
    "use its scratch folder": use_scratch,
    "read what it is given": read_book,
    "import a module late": import_late,
    "compute in threads": use_threads,
    "send itself a signal": end_itself,
}
HEAVY: dict[str, Attempt] = {"compute with PyTorch": compute}
