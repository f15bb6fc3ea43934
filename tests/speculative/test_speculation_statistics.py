"""Texts that a server samples with speculation follow the target's exact law; planted bugs do not.

As in `test_loop_statistics`, all texts of a few tokens of a tiny model are enumerated, and 1,000 are served
in each case, a few at once, with preemptions. Two in three are speculated on, with several draft lengths.
The p-values are corrected together (Holm 1979), for a false alarm once in 10,000 runs with fresh seeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.chi_square import holm, p_value
from tests.speculative.served_texts import LENGTH, SETTINGS
from tests.speculative.test_loop_statistics import FALSE_ALARM_RATE, VOCAB, law
from tests.speculative.tiny import tiny_decoder

ROOT = Path(__file__).parent.parent.parent
CASES = [*(("table", settings, None) for settings in SETTINGS), ("lookup", "plain", None)]
PLANTED = [("table", "hot", bug) for bug in ("always accepts", "no residual")]


@pytest.fixture(scope="module")
def found() -> dict[tuple, float]:
    """The p-value of each case."""
    cases = [*CASES, *PLANTED]
    command = [sys.executable, "-m", "tests.speculative.served_texts", json.dumps(cases)]
    lines = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    model = tiny_decoder(vocab_size=VOCAB)
    whole = {name: law(model, params).reshape(VOCAB**LENGTH, -1) for name, params in SETTINGS.items()}
    laws = {name: longer.sum(1) for name, longer in whole.items()}
    texts = [np.array(json.loads(line)) for line in lines.splitlines()]
    return {case: p_value(cells, laws[case[1]]) for case, cells in zip(cases, texts, strict=True)}


def test_every_drafter_and_setting_leaves_the_law_as_it_is(found):
    assert holm([found[case] for case in CASES]).min() > FALSE_ALARM_RATE


@pytest.mark.parametrize("case", PLANTED, ids=lambda case: case[2])
def test_planted_bugs_are_rejected(found, case):
    assert found[case] < FALSE_ALARM_RATE
