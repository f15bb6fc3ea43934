"""Self-speculation from an exit: the first layers draft, all layers verify, and nothing is lost.

What an early exit chooses is only a guess at what the whole model would say. Kept as the text, it is lossy;
as a draft it is verified, several tokens in one pass, and the text is the model's own (Elhoushi et al. 2024,
"LayerSkip", section 4.3; the loop is `speculative.generate`). The rule changes sides: an exit that is not
sure drafts no further, since what it would propose is likely to fall.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.early_exit.decoder import require_rule
from llmcourse.early_exit.heads import ExitHeads, check_exits
from llmcourse.early_exit.rules import ExitRule, PatienceRule
from llmcourse.speculative.early_layers import EarlyLayersDrafter


class ExitDrafter(EarlyLayersDrafter):
    """Drafts by the first layers of a model and their trained exit.

    Its head is folded (`ExitHeads.folded`), so that it is a decoder like any other, with a cache of its own
    for the first layers unless that is shared. A row may get fewer drafts than asked for, and none.

    Args:
        heads: the exits, and with them the model, which is to be the target.
        layer: after how many layers it drafts.
        sure: drafting goes on while this rule would leave, asked about this one exit's distribution before a
            token is chosen from it; None never stops.
        shared: as in `EarlyLayersDrafter`: a `SharedLayersTarget` verifies with the other layers alone.

    Raises:
        TypeError: what are no heads, or no rule.
        ValueError: an exit that is not there, or a rule that compares several exits: here there is one.
    """

    def __init__(self, heads: ExitHeads, layer: int, sure: ExitRule | None = None, *, shared: bool = False):
        check_exits(heads, [layer])
        if sure is not None:
            require_rule(sure)
            remedy = "use a ConfidenceRule or an EntropyRule, or None"
            single = not isinstance(sure, PatienceRule)
            require(single, "sure", "a rule that looks at one exit", sure, remedy)
        exit_ = heads.folded(layer)
        norm, lm_head = exit_.model.norm, exit_.lm_head
        super().__init__(heads.backbone, layer, norm=norm, lm_head=lm_head, shared=shared)
        self.sure = sure

    def goes_on(self, logits: Float[Tensor, "B V"]) -> Bool[Tensor, " B"] | None:
        return None if self.sure is None else self.sure.exits([logits])
