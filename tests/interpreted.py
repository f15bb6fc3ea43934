"""Tests in a process of their own that interprets kernels from the start: Triton reads the switch once."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
INTERPRETED = {"TRITON_INTERPRET": "1"}
QUICKLY = ("-p", "tests.patched_once")


def check_passes(*arguments: object, switches: dict[str, str] = INTERPRETED) -> None:
    """Runs pytest on these arguments; all must pass, and none may be skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | switches
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
    assert " passed" in found.stdout and "skipped" not in found.stdout
