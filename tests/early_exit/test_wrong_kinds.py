"""What is of the wrong kind is refused by name, also where nothing checks annotations: outside of tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTING = """
from llmcourse.early_exit import *
from llmcourse.early_exit.classifier.exits import SeparateExits
from llmcourse.pretrained import load
from tests.early_exit.classifier.tiny import tiny_encoder
import torch

pair = load("draft")
heads = ExitHeads(pair.model)
encoder = tiny_encoder()
classifier = SeparateExits(encoder, 2, [4])
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
    "ExitDrafter(heads, 1, shared='no')": "shared must be True or False, got 'no'; use True with a",
    "heat(heads, [1], 'entropy')": "rule must be an ExitRule, got str; make one, as EntropyRule(1.0)",
    "SeparateExits(encoder, 2, [1.0, 4])": "exits must be an integer of at least 1, got 1.0; count layers",
    "SeparateExits(encoder, 2, [True, 4])": "exits must be an integer of at least 1, got True; count layers",
    "SeparateExits(encoder, 2, ['1', 4])": "exits must be an integer of at least 1, got '1'; count layers",
    "SeparateExits(encoder, 2, '4')": "exits must be a list of numbers of layers, got '4'; give",
    "SeparateExits(encoder, 2, None)": "exits must be a list of numbers of layers, got None; give",
    "SeparateExits(encoder, 2, 4)": "exits must be a list of numbers of layers, got 4; give",
    "classifier.answer([[1]])": "tokens must be a tensor of integers of shape (1, T), got list; encode",
    "classifier.answer(torch.ones(1, 3))": "tokens must be a tensor of integers of shape (1, T), got ((1, 3)",
    "classifier.answer(torch.tensor([1]))": "tokens must be a tensor of integers of shape (1, T), got ((1,)",
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
