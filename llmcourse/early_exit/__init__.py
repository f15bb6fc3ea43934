"""Early exit: an answer that is sure after a few layers does not wait for the others.

rules             when a layer is sure enough: by entropy, by confidence, by layers that agree
heads             what reads a layer of a decoder, before the last one
regression        heads without training: least squares between layers
stored            trained heads as files, for one backbone alone
decoder           decoding that leaves at the first exit which is sure
skipped           keys and values of the layers that were skipped: handed up, or computed later
uncached          the slow truth of both
self_speculation  an exit drafts and all layers verify: nothing is lost
readings          what every exit says over given texts
heat_map          a text seen from every exit, and where a rule would leave
threshold         the fewest layers for a quality, the best quality for a budget
classifier        the same for an encoder that answers once a text: five methods on three tasks
"""

from llmcourse.early_exit.decoder import EarlyExitLogits, EarlyGeneration, generate_early
from llmcourse.early_exit.heads import ExitHead, ExitHeads, check_exits
from llmcourse.early_exit.heat_map import Heat, heat
from llmcourse.early_exit.readings import Readings, read_texts
from llmcourse.early_exit.regression import fit_heads
from llmcourse.early_exit.rules import (
    ConfidenceRule,
    EntropyRule,
    ExitRule,
    PatienceRule,
    confidence,
    entropy,
)
from llmcourse.early_exit.self_speculation import ExitDrafter
from llmcourse.early_exit.stored import EXIT_HEADS, load_heads, save_heads
from llmcourse.early_exit.threshold import Choice, Curve, curve, fewest_layers, most_agreement
from llmcourse.early_exit.uncached import UncachedEarlyExitLogits

__all__ = [
    "EXIT_HEADS",
    "Choice",
    "ConfidenceRule",
    "Curve",
    "EarlyExitLogits",
    "EarlyGeneration",
    "EntropyRule",
    "ExitDrafter",
    "ExitHead",
    "ExitHeads",
    "ExitRule",
    "Heat",
    "PatienceRule",
    "Readings",
    "UncachedEarlyExitLogits",
    "check_exits",
    "confidence",
    "curve",
    "entropy",
    "fewest_layers",
    "fit_heads",
    "generate_early",
    "heat",
    "load_heads",
    "most_agreement",
    "read_texts",
    "save_heads",
]
