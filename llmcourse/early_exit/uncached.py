"""The slow truth of decoding with early exit: the whole text again at every token, and no cache.

    propagate   x_l[t] = Layer_l(x_{l−1})[t] where token t went so far, else x_{l−1}[t]
    recompute   x_l[t] = Layer_l(x_{l−1})[t] for all: only the choice of the token was early

Layer l attends to keys and values of x_{l−1}, so that this says all there is to say of skipped layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.source import UncachedLogits
from llmcourse.early_exit.decoder import require_rule
from llmcourse.early_exit.heads import ExitHeads, check_exits
from llmcourse.early_exit.rules import ExitRule
from llmcourse.early_exit.skipped import Skipped, require_skipped


class UncachedEarlyExitLogits(UncachedLogits):
    """As `EarlyExitLogits`, row by row and token by token as the definition says."""

    def __init__(
        self,
        heads: ExitHeads,
        rule: ExitRule,
        *,
        exits: Sequence[int] | None = None,
        skipped: Skipped = "propagate",
    ):
        self.exits = check_exits(heads, exits)
        require_rule(rule)
        require_skipped(skipped)
        super().__init__(heads.backbone)
        self.heads, self.rule, self.skipped = heads, rule, skipped

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Float[Tensor, "B V"]:
        count = self.model.config.num_layers
        self._went = [[count] * len(prompt) for prompt in prompts]
        self.exit_layers = [[count] * len(prompts)]
        return super().start(prompts, capacity)

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        logits = []
        for row, token in enumerate(tokens.tolist()):
            self.texts[row].append(token)
            left, found = self._climb(row)
            self._went[row].append(left)
            logits.append(found)
        self.exit_layers.append([went[-1] for went in self._went])
        return torch.stack(logits)

    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        super().reorder(rows)
        chosen = rows.tolist()
        self._went = [list(self._went[row]) for row in chosen]
        self.exit_layers = [[step[row] for row in chosen] for step in self.exit_layers]

    def _climb(self, row: int) -> tuple[int, Float[Tensor, " V"]]:
        """After how many layers the last token of a row leaves, and the logits there."""
        ids = torch.tensor([self.texts[row]], device=self.device)
        x, context = self.model.begin(ids)
        went = torch.tensor([*self._went[row], self.model.config.num_layers], device=self.device)
        history = []
        for number, layer in enumerate(self.model.model.layers, start=1):
            whole = layer(x, number - 1, context)
            goes_on = (went >= number) | (self.skipped == "recompute")
            x = torch.where(goes_on[:, None], whole, x)
            if number in self.exits:
                history.append(self.heads(number, x[:, -1]))
                if self.rule.exits(history).item():
                    return number, history[-1][0]
        return number, self.model.lm_head(self.model.model.norm(x[:, -1]))[0]
