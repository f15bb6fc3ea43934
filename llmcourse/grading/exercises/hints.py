"""Hints that more than one exercise gives."""

KEEP_DTYPE = (
    "Every step in the dtype of the logits: zeros_like and ones_like, not zeros and ones, and no .float() on "
    "the way."
)
