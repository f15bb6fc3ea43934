"""Early exit: an answer that is sure after a few layers does not wait for the others.

rules       when a layer is sure enough: by entropy, by confidence, by layers that agree
"""

from llmcourse.early_exit.rules import (
    ConfidenceRule,
    EntropyRule,
    ExitRule,
    PatienceRule,
    confidence,
    entropy,
)

__all__ = ["ConfidenceRule", "EntropyRule", "ExitRule", "PatienceRule", "confidence", "entropy"]
