"""Several tokens for one pass of the model: a cheap drafter proposes, the target verifies, no text changes.

verify         which drafts stand, and the target's token after them: no distribution is changed
arguments      what verification refuses
distributions  p and q as tokens are drawn from them, after penalties, temperature and truncation
theory         expected tokens and speed-up from α, γ and c; the best γ
drafter        what proposes drafts, behind one interface
lookup         a drafter without a model: what followed the last tokens before
model_drafter  a smaller model as a drafter
early_layers   the target's own first layers as a drafter
vocabulary     whether draft and target mean the same by a token
draft_length   how many to ask for: fixed, or by the acceptance seen
target         what is asked of a target: to read several tokens at once, and to take some back
loop           draft, verify, keep what stands, repeat: `stream` and `generate` as in decoding
judge          a step's verdict on a batch, in which rows fail alone
numbers        chance for rows that need unequally much of it
steps          what a step leaves to be looked at
measured       acceptance, costs and speed-up of such steps, beside what theory predicts
"""

from llmcourse.speculative.distributions import distribution, point_masses, processed, processed_logits
from llmcourse.speculative.draft_length import AdaptiveLength, DraftLength, FixedLength, Tally
from llmcourse.speculative.drafter import Draft, Drafter
from llmcourse.speculative.early_layers import EarlyLayersDrafter
from llmcourse.speculative.judged import DraftError
from llmcourse.speculative.lookup import LookupDrafter, look_up
from llmcourse.speculative.loop import generate, stream
from llmcourse.speculative.model_drafter import ModelDrafter
from llmcourse.speculative.steps import SpeculativeStep
from llmcourse.speculative.target import CachedTarget, Target, UncachedTarget, as_target
from llmcourse.speculative.theory import (
    acceptance,
    best_draft_length,
    expected_tokens,
    expected_tokens_by_position,
    speed_up,
)
from llmcourse.speculative.verify import Verdict, residual, verify_drafts

__all__ = [
    "AdaptiveLength",
    "CachedTarget",
    "Draft",
    "DraftError",
    "DraftLength",
    "Drafter",
    "EarlyLayersDrafter",
    "FixedLength",
    "LookupDrafter",
    "ModelDrafter",
    "SpeculativeStep",
    "Tally",
    "Target",
    "UncachedTarget",
    "Verdict",
    "acceptance",
    "as_target",
    "best_draft_length",
    "distribution",
    "expected_tokens",
    "expected_tokens_by_position",
    "generate",
    "look_up",
    "point_masses",
    "processed",
    "processed_logits",
    "residual",
    "speed_up",
    "stream",
    "verify_drafts",
]
