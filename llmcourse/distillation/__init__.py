"""A small model learns from a large one: from its answers, from what it thinks on the way, on its own text.

losses           the teacher's distribution as soft labels: forward KL, reverse KL, Jensen–Shannon
"""

from llmcourse.distillation.losses import (
    Response,
    forward_kl,
    hard_loss,
    jensen_shannon,
    response_loss,
    reverse_kl,
)

__all__ = [
    "Response",
    "forward_kl",
    "hard_loss",
    "jensen_shannon",
    "response_loss",
    "reverse_kl",
]
