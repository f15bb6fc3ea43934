"""A small model learns from a large one: from its answers, from what it thinks on the way, on its own text.

losses           the teacher's distribution as soft labels: forward KL, reverse KL, Jensen–Shannon
stored_teacher   the same with what can be kept of a teacher: its k likeliest tokens
"""

from llmcourse.distillation.losses import (
    Response,
    forward_kl,
    hard_loss,
    jensen_shannon,
    response_loss,
    reverse_kl,
)
from llmcourse.distillation.stored_teacher import TopK, stored_loss

__all__ = [
    "Response",
    "TopK",
    "forward_kl",
    "hard_loss",
    "jensen_shannon",
    "response_loss",
    "reverse_kl",
    "stored_loss",
]
