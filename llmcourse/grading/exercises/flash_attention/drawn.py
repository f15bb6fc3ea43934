"""What the exercises of lab 3 share: what an answer may not call, and how large its tensors may be."""

from __future__ import annotations

from llmcourse.grading.rules import LIBRARIES, Forbid

# The course's own attention, kernels and scheduler are the answers to these exercises, as is PyTorch's
# attention; and what NumPy holds is not seen when memory is counted.
ATTENTION = (
    *("scaled_dot_product_attention", "scaled_dot_product_flash_attention", "flex_attention"),
    *("MultiheadAttention", "multi_head_attention_forward", "sdpa", "attention_reference"),
)
COURSE = ("attention", "kernels", "kv_cache", "serving")
SDPA = ("scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_attention_math")
SOFTMAX = ("softmax", "log_softmax", "logsumexp", "logcumsumexp")
OWN_WORK = Forbid(operations=SDPA, names=(*LIBRARIES, *ATTENTION, *COURSE, "numpy"))
OWN_SOFTMAX = Forbid(
    operations=(*SDPA, *SOFTMAX),
    names=(*LIBRARIES, *ATTENTION, *COURSE, "numpy", "RunningSoftmax", "logaddexp"),
)
FLOAT_BYTES = 4


def float_bytes(numbers: int) -> int:
    """Bytes of so many numbers in float32."""
    return FLOAT_BYTES * numbers
