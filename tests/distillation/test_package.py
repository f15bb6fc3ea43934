"""The package is light: what shares work among processes is imported where there are some."""

import subprocess
import sys

import pytest

HEAVY = ("torch.distributed.fsdp", "torch.distributed.tensor")


def told(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_what_shares_work_among_processes_is_not_imported_for_one():
    code = "import sys; from llmcourse.distillation import distill; from llmcourse.distillation.shards import "
    code += f"whole; import torch; whole(torch.ones(2)); print(*(name in sys.modules for name in {HEAVY}))"
    assert told(code) == "False False\n"


@pytest.mark.alone
def test_importing_it_takes_hardly_longer_than_importing_quantization():
    code = "import time, torch; start = time.perf_counter(); import llmcourse.{}; "
    code += "print(time.perf_counter() - start)"
    took_s = {
        name: min(float(told(code.format(name))) for _ in range(3)) for name in ("distillation", "quantization")
    }
    assert took_s["distillation"] < took_s["quantization"] + 0.5
