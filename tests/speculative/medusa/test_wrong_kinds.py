"""What is of the wrong kind is refused by name, also where nothing checks annotations: outside of tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import torch
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.speculative.medusa import *

model = Decoder(DecoderConfig(12, 8, 8, 1, 1, 1, 8, 16)).eval()
heads = MedusaHeads(HeadsConfig.for_model(model, 2))
tree = full([2])
CALLS = {
    "full": lambda: full(3),
    "full of text": lambda: full("ab"),
    "sparse": lambda: sparse("4"),
    "tree": lambda: MedusaTree(3),
    "node": lambda: MedusaTree([0, 1]),
    "config": lambda: HeadsConfig("4", 1, 8, 12),
    "typical": lambda: TypicalAcceptance("high"),
    "search": lambda: search([[0.5, 0.5]], 3),
    "num_nodes": lambda: search(torch.tensor([[0.5, 0.5]]), 2.5),
    "ranks": lambda: rank_accuracies([[0]]),
    "tokens": lambda: true_ranks(model, heads, [[1, 2, 3]]),
    "heads": lambda: generate(model, model, [[1]], tree=tree),
    "pair": lambda: generate((model, None), heads, [[1]], tree=tree),
    "draft tree": lambda: generate(model, heads, [[1]], tree=tree.tree),
    "engine": lambda: MedusaEngine(model, heads, [(0,)]),
    "engine's draft tree": lambda: MedusaEngine(model, heads, tree.tree),
    "drafting": lambda: generate(model, heads, [[1]], tree=tree, drafting="guessed"),
    "a number for typical": lambda: generate(model, heads, [[1]], tree=tree, typical=0.3),
    "text": lambda: generate(model, heads, ["abc"], tree=tree),
    "p": lambda: typical_walk([[0.5]], torch.zeros(1, 0).long(), tree.tree, TypicalAcceptance()),
    "load": lambda: load_heads(".", heads),
    "save": lambda: save_heads(model, model, None),
    "folder": lambda: save_heads(heads, model, None),
    "notes": lambda: save_heads(heads, model, ".", [1]),
}
for name, call in CALLS.items():
    try:
        call()
    except (TypeError, ValueError) as error:
        if " must be " not in str(error) and " must hold " not in str(error):
            print(name, "says", repr(error))
    else:
        print(name, "passes")
"""


def test_every_refusal_names_the_argument():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
