"""Several tokens for one pass of the model: a cheap drafter proposes, the target verifies, no text changes.

verify         which drafts stand, and the target's token after them: no distribution is changed
arguments      what verification refuses
tree           drafts that branch: which follows which, and the slow truth of reading them at once
verify_tree    which path of a tree stands, greedily and losslessly
distributions  p and q as tokens are drawn from them, after penalties, temperature and truncation
theory         expected tokens and speed-up from α, γ and c; the best γ
drafter        what proposes drafts, behind one interface
lookup         a drafter without a model: what followed the last tokens before
model_drafter  a smaller model as a drafter
early_layers   the target's own first layers as a drafter
shared_layers  the same with one cache: verification begins behind the layers that drafted
vocabulary     whether draft and target mean the same by a token
draft_length   how many to ask for: fixed, or by the acceptance seen
target         what is asked of a target: to read several tokens at once, and to take some back
loop           draft, verify, keep what stands, repeat: `stream` and `generate` as in decoding
engine         the same over static memory: on a GPU a step is one recorded graph
speculation    any drafter as an option of a request that is served among others
judged         a step's verdict on a batch, in which rows fail alone
numbers        chance for rows that need unequally much of it
steps          what a step leaves to be looked at
medusa         heads on the target that guess several tokens, and trees of guesses read in one pass
measured       acceptance, costs and speed-up of such steps, beside what theory predicts

A cascade of whole models, whose text is not the largest one's:

cascade        the cheapest model first, a dearer one where a judge doubts the answer
answers        a model's answers, what can be seen of them, and what they cost
answered       questions that all models have answered, for judges and thresholds to be tried on
judge          how probably an answer is right: logistic regression, and a calibrated confidence
ledger         what all models made of all questions, and what a cascade would have
frontier       thresholds for a quality target or a budget, exactly
baselines      single models, mixing by chance, oracles
tasks          questions with answers that can be checked
"""

from llmcourse.speculative.answered import Answered
from llmcourse.speculative.answers import Answer, ModelAnswers, answer_cost
from llmcourse.speculative.baselines import mixed, mixture, oracle, perfect_judge, single_models
from llmcourse.speculative.cascade import Cascade, Kept, Stage
from llmcourse.speculative.distributions import distribution, point_masses, processed, processed_logits
from llmcourse.speculative.draft_length import AdaptiveLength, DraftLength, FixedLength, Tally
from llmcourse.speculative.drafter import Draft, Drafter
from llmcourse.speculative.early_layers import EarlyLayersDrafter
from llmcourse.speculative.frontier import Point, best_within, cheapest, pareto_frontier
from llmcourse.speculative.judge import Judge, LogisticJudge, fit_judge
from llmcourse.speculative.judged import DraftError
from llmcourse.speculative.ledger import Ledger, Outcome, Policy, apply_policy
from llmcourse.speculative.lookup import LookupDrafter, look_up
from llmcourse.speculative.loop import generate, stream
from llmcourse.speculative.model_drafter import ModelDrafter
from llmcourse.speculative.shared_layers import SharedLayersTarget
from llmcourse.speculative.speculation import Speculation
from llmcourse.speculative.steps import SpeculativeStep
from llmcourse.speculative.target import CachedTarget, Target, UncachedTarget, as_target
from llmcourse.speculative.theory import (
    acceptance,
    best_draft_length,
    expected_tokens,
    expected_tokens_by_position,
    speed_up,
)
from llmcourse.speculative.tree import DraftTree, chain, read_tree
from llmcourse.speculative.verify import Verdict, residual, verify_drafts
from llmcourse.speculative.verify_tree import TreeVerdict, verify_tree, walk

__all__ = [
    "AdaptiveLength",
    "Answer",
    "Answered",
    "CachedTarget",
    "Cascade",
    "Draft",
    "DraftError",
    "DraftLength",
    "DraftTree",
    "Drafter",
    "EarlyLayersDrafter",
    "FixedLength",
    "Judge",
    "Kept",
    "Ledger",
    "LogisticJudge",
    "LookupDrafter",
    "ModelAnswers",
    "ModelDrafter",
    "Outcome",
    "Point",
    "Policy",
    "SharedLayersTarget",
    "Speculation",
    "SpeculativeStep",
    "Stage",
    "Tally",
    "Target",
    "TreeVerdict",
    "UncachedTarget",
    "Verdict",
    "acceptance",
    "answer_cost",
    "apply_policy",
    "as_target",
    "best_draft_length",
    "best_within",
    "chain",
    "cheapest",
    "distribution",
    "expected_tokens",
    "expected_tokens_by_position",
    "fit_judge",
    "generate",
    "look_up",
    "mixed",
    "mixture",
    "oracle",
    "pareto_frontier",
    "perfect_judge",
    "point_masses",
    "processed",
    "processed_logits",
    "read_tree",
    "residual",
    "single_models",
    "speed_up",
    "stream",
    "verify_drafts",
    "verify_tree",
    "walk",
]
