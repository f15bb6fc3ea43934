"""The step of the online softmax that every attention kernel takes, of tiles of scores in base 2.

What it computes is `llmcourse.attention.online_softmax.RunningSoftmax.join`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def join(scores, peak, weight):
    """A tile of scores s joins what was seen (Milakov and Gimelshein 2018, algorithm 3), row by row:

        m' = max(m, max s),   l' = l · 2^(m − m') + Σ 2^(s − m'),   o' = o · 2^(m − m') + Σ 2^(s − m') v

    Returns m', l', and for the caller, who has v, the factors 2^(m − m') and 2^(s − m'). A score of −inf
    weighs nothing.
    """
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # −inf − (−inf) would be no number
    fade = tl.exp2(peak - shift)
    share = tl.exp2(scores - shift[:, None])
    return new_peak, weight * fade + tl.sum(share, axis=1), fade, share
