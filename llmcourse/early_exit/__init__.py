"""Early exit: an answer that is sure after a few layers does not wait for the others.

rules       when a layer is sure enough: by entropy, by confidence, by layers that agree
heads       what reads a layer of a decoder, before the last one
heads_file  trained heads as files, for one backbone alone
"""

from llmcourse.early_exit.heads import ExitHead, ExitHeads, check_exits
from llmcourse.early_exit.heads_file import load_heads, save_heads
from llmcourse.early_exit.rules import (
    ConfidenceRule,
    EntropyRule,
    ExitRule,
    PatienceRule,
    confidence,
    entropy,
)

__all__ = [
    "ConfidenceRule",
    "EntropyRule",
    "ExitHead",
    "ExitHeads",
    "ExitRule",
    "PatienceRule",
    "check_exits",
    "confidence",
    "entropy",
    "load_heads",
    "save_heads",
]
