"""What is of the wrong kind is refused by name, also where nothing checks annotations: outside of tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTING = """
import numpy as np
import torch
from llmcourse.pretrained import load
from llmcourse.speculative import *
from llmcourse.speculative.answers import Answer
from llmcourse.speculative.cascade import judged, stack_features
from llmcourse.speculative.engine import SpeculativeEngine
from llmcourse.speculative.judge import fit_judge

p, q, drafts = torch.full((1, 3, 4), 0.25), torch.full((1, 2, 4), 0.25), torch.tensor([[1, 2]])
uniform, tree = torch.zeros(1, 3), DraftTree([-1, 0])
x, right = torch.eye(2), torch.tensor([True, False])
ledger = Ledger(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2))
answer = Answer("a", (0.1,), 1, 1)


def ask(questions):
    return [answer] * len(questions)


class Says:
    def __init__(self, scores):
        self.said = scores

    def scores(self, features):
        return self.said


def write(seed):
    engine = SpeculativeEngine(load("draft").model, LookupDrafter(load("draft").model.config.vocab_size))
    return engine.generate([[1]], 9, temperature=1.0, seed=seed).tokens


first, last = Stage("first", ask, 1, Says(torch.ones(1))), Stage("last", ask, 2)
"""

# An expression, and how the refusal begins.
REFUSED = {
    "Speculation(LookupDrafter(9), device=[])": "device must be one that PyTorch knows, got []; use",
    "acceptance([0.5, 0.5], [0.5, 0.5])": "p must be a tensor, got list; make one with torch.tensor",
    "acceptance(p, q)": "q must be of shape (1, 3, 4) as p, with a vocabulary, got (1, 2, 4); give",
    "acceptance(torch.tensor(1.0), torch.tensor(1.0))": "q must be of shape () as p, with a vocabulary, got",
    "speed_up(0.5, 3, 0.1, 1.2)": "verify_cost must be a function of the tokens, got 1.2; give v(n)",
    "verify_drafts(p.tolist(), q, drafts, uniform)": "p must be a tensor, got list; make one with",
    "verify_drafts(p, None, drafts, uniform)": "q must be a tensor, got NoneType; make one with",
    "verify_drafts(p, q, drafts.float(), uniform)": "drafts must be of int32 or int64, got torch.float32",
    "verify_drafts(p, q, drafts, uniform, [2])": "num_drafts must be a tensor, got list; make one with",
    "verify_drafts(p, q, drafts, uniform, torch.tensor([1.5]))": "num_drafts must be of int32 or int64, got",
    "verify_tree(p, q, drafts, uniform, [-1, 0])": "tree must be a DraftTree, got list; pass the tree in",
    "walk(p, drafts.tolist(), tree)": "drafts must be a tensor, got list; make one with",
    "walk(p, drafts.float(), tree)": "drafts must be of int32 or int64, got torch.float32",
    "walk(p, drafts, tree, [2])": "num_drafts must be a tensor, got list; make one with",
    "walk(p[..., :0], drafts, tree)": "p must be of shape (1, 3) and V, got (1, 3, 0); stack",
    "DraftTree(3)": "parents must be a list of integers, got 3; give the parent of each node, as [-1, 0, 0]",
    "DraftTree([-1, None])": "parents must be a list of integers, got [-1, None]; give the parent",
    "tree.path(0.0)": "node must be an integer in [-1, 1], got 0.0; use -1 for the root",
    "tree.path('0')": "node must be an integer in [-1, 1], got '0'; use -1",
    "look_up([1, 2, 1], 2)": "text must be a tensor, got list; make one with torch.tensor",
    "look_up(torch.tensor([[1, 2, 1]]), 2)": "text must be of shape (S,), got (1, 3); look up each row",
    "look_up(torch.tensor([1.0, 2.0]), 2)": "text must be of int32 or int64, got torch.float32; pass",
    "ModelDrafter(load('draft'))": "model must be a Decoder, got Pretrained; pass the model that",
    "EarlyLayersDrafter(load('draft'), 1)": "target must be a Decoder, got Pretrained; pass the model that",
    "fit_judge([[0.1]], right)": "features must be a tensor, got list; make one with torch.tensor",
    "fit_judge(x.numpy(), right)": "features must be a tensor, got ndarray; make one with torch.tensor",
    "fit_judge(x, [True, False])": "right must be a tensor, got list; make one with torch.tensor",
    "fit_judge(x, right, columns=0)": "columns must be a list, got 0; pass one as [column]",
    "fit_judge(x, right, columns=[True])": "columns must be in [0, 1], got True; count them from 0",
    "fit_judge(x[:, [0, 0]], right, penalty=1e-40)": "penalty must be large enough to tell weights apart",
    "Ledger([[1.0]], [[1.0]], [[1.0]])": "quality must be a tensor, got list; make one with torch.tensor",
    "ledger.judged_by(None)": "scores must be a tensor, got NoneType; make one with",
    "ledger.rows(torch.tensor([2]))": "chosen must be in [0, 1], got 2; count the questions from 0",
    "ledger.rows(torch.tensor([0.5]))": "chosen must be of int32 or int64, got torch.float32; pass",
    "apply_policy(ledger, Policy((0,))).shares(1.5)": "num_models must be an integer of at least 1, got 1.5",
    "Policy(0)": "models must be a tuple, got 0; name columns of a ledger, as (0, 2)",
    "Policy((True,))": "models must be increasing integers of at least 0, got (True,); name columns",
    "Policy((0, 1), 0.5)": "thresholds must be a tuple, got 0.5; give a tuple, as (0.5,)",
    "Stage('a', load('draft')[1], 1)": "answers of a must be a function of the questions, got",
    "Stage('a', ask, 1, LogisticJudge)": "judge of a must be a Judge or None, got <class",
    "Cascade(last)": "stages must be a tuple, got Stage(name='last'",
    "Cascade(('first', 'last'), (0.5,))": "stages[0] must be a Stage, got str; make one of each model",
    "Cascade((first, last), 0.5)": "thresholds must be a tuple, got 0.5; give a tuple",
    "judged(Says(0), ['yes'])": "answers[0] must be an Answer, got str; return Answers",
    "stack_features([answer, Answer('b', (), 1, 1)])": "answers[1] must be of 1 features as the first, got 0",
    "judged(Says([0.5]), [answer])": "scores must be a tensor, got list; make one with",
    "judged(Says(None), [answer])": "scores must be a tensor, got NoneType; make one with",
}
# NumPy's numbers are numbers, and what is to be seen.
TAKEN = {
    "fit_judge(x, right, columns=np.arange(1)).columns": "(0,)",
    "write(np.int64(7)) == write(7) != write(8)": "True",
}
CALLED = f"""
for call in {[*REFUSED, *TAKEN]!r}:
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
    return dict(zip([*REFUSED, *TAKEN], found.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("call", REFUSED)
def test_it_is_refused_by_name(answers, call):
    assert answers[call].startswith(REFUSED[call])


@pytest.mark.parametrize("call", TAKEN)
def test_what_numpy_counts_with_is_taken(answers, call):
    assert answers[call] == TAKEN[call]
