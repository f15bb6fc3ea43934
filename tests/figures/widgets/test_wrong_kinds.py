"""What is of the wrong kind is refused by name, also where nothing checks annotations: outside of tests."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
from llmcourse.early_exit import ExitHeads
from llmcourse.figures.widgets import BlockPlayer, CandidateTreeViewer, ExitExplorer, QuantizerExplorer
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.speculative.medusa import HeadsConfig, MedusaHeads, full

model = Decoder(DecoderConfig(12, 8, 8, 2, 1, 1, 8, 16)).eval()
heads = MedusaHeads(HeadsConfig.for_model(model, 2))
CALLS = {
    "heads": lambda: CandidateTreeViewer(model, None, model),
    "model": lambda: CandidateTreeViewer(heads, None, heads),
    "tree": lambda: CandidateTreeViewer(model, None, heads, trees={"a": [(0,)]}),
    "one tree": lambda: CandidateTreeViewer(model, None, heads, trees=full([2]).tree),
    "blocks": lambda: BlockPlayer(model, None),
    "no tokenizer": lambda: CandidateTreeViewer(model, None, heads),
    "length": lambda: CandidateTreeViewer(model, None, heads, max_new_tokens=10**9),
    "length in text": lambda: CandidateTreeViewer(model, None, heads, max_new_tokens="4"),
    "no length": lambda: CandidateTreeViewer(model, None, heads, max_new_tokens=0),
    "exits alone": lambda: ExitExplorer(ExitHeads(model), None),
    "map's length": lambda: ExitExplorer(ExitHeads(model), None, max_new_tokens=None),
    "map's length in text": lambda: ExitExplorer(ExitHeads(model), None, max_new_tokens="4"),
    "exits": lambda: ExitExplorer(model, None),
    "weights": lambda: QuantizerExplorer((model, None)),
}
for name, call in CALLS.items():
    try:
        call()
    except (TypeError, ValueError) as error:
        print(f"{name}: {error}")
"""
LENGTH = "max_new_tokens must be an integer in [1, 128]"
EXPECTED = {
    "heads": "heads must be a MedusaHeads, got Decoder; take those that load_heads returns",
    "model": "model must be a Decoder, got MedusaHeads; take what pretrained.load returns",
    "tree": "tree 'a' must be a MedusaTree, got list; make one with full or sparse",
    "one tree": "tree 'given' must be a MedusaTree, got DraftTree; make one with full or sparse",
    "blocks": "model must be a BlockDecoder, got Decoder; load adapters with load_adapters",
    "no tokenizer": "tokenizer must be a Tokenizer, got NoneType; take that of pretrained.load",
    "length": f"{LENGTH}, got 1000000000; a step of each has a picture of its own",
    "length in text": f"{LENGTH}, got '4'; a step of each has a picture of its own",
    "no length": f"{LENGTH}, got 0; a step of each has a picture of its own",
    "exits alone": "tokenizer must be a Tokenizer, got NoneType; take that of pretrained.load",
    "map's length": "max_new_tokens must be in [0, 58], got None; a map takes at most 60 tokens",
    "map's length in text": "max_new_tokens must be in [0, 58], got '4'; a map takes at most 60 tokens",
    "exits": "heads must be ExitHeads, got Decoder; take those of early_exit.load_heads",
    "weights": "model must be a Decoder or {name: matrix}, got tuple; take pretrained.load(…)[0]",
}


def test_what_is_of_the_wrong_kind_is_refused_by_name():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{name}: {message}" for name, message in EXPECTED.items()], (
        done.stderr
    )
