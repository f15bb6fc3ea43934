"""Attention, in the order in which it is explained: what it is, and why it need not fill the memory.

definition       scaled dot-product attention, and the same through PyTorch
online_softmax   softmax over scores that come one after another
tiled            scores that never leave the chip: FlashAttention, with the bytes counted
"""

from llmcourse.attention.definition import Attention, attention_reference, causal_mask, sdpa
from llmcourse.attention.online_softmax import RunningSoftmax, online_softmax
from llmcourse.attention.tiled import SlowMemory, tiled_attention, unfused_attention

__all__ = [
    "Attention",
    "RunningSoftmax",
    "SlowMemory",
    "attention_reference",
    "causal_mask",
    "online_softmax",
    "sdpa",
    "tiled_attention",
    "unfused_attention",
]
