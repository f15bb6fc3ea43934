"""What is of the wrong kind is refused by name, also where nothing checks annotations: outside of tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTING = """
from llmcourse.early_exit import *
from llmcourse.pretrained import load

pair = load("draft")
heads = ExitHeads(pair.model)
"""

# An expression, and how the refusal begins.
REFUSED = {
    "ExitHeads(pair)": "backbone must be a Decoder, got Pretrained; pass the model that",
    "heads.head(1.0)": "an exit must be an integer of at least 1, got 1.0",
    "heads.head('1')": "an exit must be an integer of at least 1, got '1'",
    "EarlyExitLogits(pair.model, EntropyRule(1))": "heads must be ExitHeads, got Decoder; load them with",
    "EarlyExitLogits(heads, 0.5)": "rule must be an ExitRule, got float; make one, as EntropyRule(1.0)",
    "EarlyExitLogits(heads, EntropyRule)": "rule must be an ExitRule, got the class EntropyRule; make one",
    "EarlyExitLogits(heads, EntropyRule(1), exits=1)": "exits must be a list of numbers of layers, got 1",
    "EarlyExitLogits(heads, EntropyRule(1), exits=[2])": "an exit must be at most 1, got 2; after the last",
    "EarlyExitLogits(heads, EntropyRule(1), skipped=None)": "skipped must be 'propagate' or 'recompute', got",
    "ExitDrafter(pair.model, 1)": "heads must be ExitHeads, got Decoder; load them with load_heads",
    "ExitDrafter(heads, 1, 0.9)": "rule must be an ExitRule, got float; make one, as EntropyRule(1.0)",
    "fit_heads(pair.model, [])": "heads must be ExitHeads, got Decoder; load them with",
    "heat(heads, [1], 'entropy')": "rule must be an ExitRule, got str; make one, as EntropyRule(1.0)",
    "load_heads('draft', pair.model)": "no exit heads in ",
}
CALLED = f"""
for call in {[*REFUSED]!r}:
    try:
        print(repr(eval(call)).replace(chr(10), " "))
    except Exception as error:
        print(str(error).replace(chr(10), " "))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What plain Python says to each call, all in one process."""
    command = [sys.executable, "-c", SETTING + CALLED]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return dict(zip(REFUSED, found.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("call", REFUSED)
def test_it_is_refused_by_name(answers, call):
    assert answers[call].startswith(REFUSED[call])
