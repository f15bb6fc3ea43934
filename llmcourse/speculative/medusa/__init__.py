"""Medusa: heads on the backbone guess the tokens after the next, and a tree of guesses is read in one pass.

heads       from the last hidden state to guesses for the second, third, … next token
guesses     what all heads say at once, their matrices side by side
stored      heads as files, for one backbone alone
candidates  which guesses are tried together: full and sparse trees
search      the tree for a budget of nodes, from how often each guess is right
drafting    the tokens of a tree's nodes: the likeliest of each head, or drawn from it
reading     tree attention: all nodes in one pass, and the accepted path kept in the cache
typical     typical acceptance, which is lossy, and how much it changes
judged      a step's verdict on a batch, in which rows fail alone
loop        propose, read, choose a path, repeat: `stream` and `generate` as in decoding
engine      the same over static memory, greedy: on a GPU a step is one recorded graph
steps       what a step leaves to be looked at, and which nodes stood (`measured`: what was gained)
"""

from llmcourse.speculative.medusa.candidates import MedusaTree, full, sparse
from llmcourse.speculative.medusa.engine import MedusaEngine
from llmcourse.speculative.medusa.heads import HeadsConfig, MedusaHeads
from llmcourse.speculative.medusa.loop import generate, stream
from llmcourse.speculative.medusa.reading import TreeTarget, mask_of
from llmcourse.speculative.medusa.search import (
    expected_tokens,
    observed_tokens,
    rank_accuracies,
    search,
    true_ranks,
    written_ranks,
)
from llmcourse.speculative.medusa.steps import MedusaStep, accepted_nodes
from llmcourse.speculative.medusa.stored import MEDUSA_HEADS, load_heads, save_heads
from llmcourse.speculative.medusa.typical import (
    TypicalAcceptance,
    first_token_law,
    total_variation,
    typical_walk,
)

__all__ = [
    "MEDUSA_HEADS",
    "HeadsConfig",
    "MedusaEngine",
    "MedusaHeads",
    "MedusaStep",
    "MedusaTree",
    "TreeTarget",
    "TypicalAcceptance",
    "accepted_nodes",
    "expected_tokens",
    "first_token_law",
    "full",
    "generate",
    "load_heads",
    "mask_of",
    "observed_tokens",
    "rank_accuracies",
    "save_heads",
    "search",
    "sparse",
    "stream",
    "total_variation",
    "true_ranks",
    "typical_walk",
    "written_ranks",
]
