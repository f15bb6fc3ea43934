"""A process leaves with its exit code and its words; one of several leaves its interpreter whole."""

import os
import subprocess
import sys

import pytest

from tests.training.tiny import ROOT

PROGRAM = """
import atexit
from llmcourse.training.processes import leave
atexit.register(lambda: print("taken apart"))
print("done")
leave(3)
"""


def ended(rank: dict[str, str]) -> subprocess.CompletedProcess:
    others = {name: value for name, value in os.environ.items() if name != "RANK"}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, cwd=ROOT, env=others | rank, capture_output=True, text=True)


@pytest.mark.parametrize(("rank", "said"), [({}, "done\ntaken apart\n"), ({"RANK": "1"}, "done\n")])
def test_the_code_and_what_was_printed_come_out(rank, said):
    process = ended(rank)
    assert (process.returncode, process.stdout, process.stderr) == (3, said, "")
