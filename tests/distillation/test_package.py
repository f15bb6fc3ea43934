"""The package is light: what shares work among processes is imported where there are some."""

import subprocess
import sys

import pytest

HEAVY = ("torch.distributed.fsdp", "torch.distributed.tensor")
ALONE = f"""
import sys, torch
from llmcourse.distillation import distill
from llmcourse.distillation.shards import whole
whole(torch.ones(2))
print(*(name in sys.modules for name in {HEAVY}))
"""
TIMED = "import time, torch; start = time.process_time(); import {}; print(time.process_time() - start)"


def told(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_what_shares_work_among_processes_is_not_imported_for_one():
    assert told(ALONE) == "False False\n"


@pytest.mark.alone
def test_importing_it_takes_hardly_longer_than_importing_quantization():
    """By the time of a core, which others on the machine take less part in."""
    ours, theirs = (
        min(float(told(TIMED.format(f"llmcourse.{name}"))) for _ in range(3))
        for name in ("distillation", "quantization")
    )
    assert ours < theirs + 0.5
