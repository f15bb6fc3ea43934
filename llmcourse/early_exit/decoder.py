"""Decoding that leaves each token's pass at the first exit which is sure: fewer layers, and another text.

The prompt is read by all layers. Then every row of a batch goes up layer by layer until the rule lets it go,
each by itself; the layers that are left are run for the rows that stay. What is chosen at an exit is the
text: it may differ from the full model's, which `self_speculation` mends.

An exit is not free: it multiplies by the whole vocabulary, which costs as much as several layers where those
are small (three and a half in `base`). Fewer exits may be faster than all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.decoding.loop import generate
from llmcourse.decoding.rows import Generation
from llmcourse.decoding.source import CachedLogits
from llmcourse.early_exit.heads import ExitHeads, check_exits
from llmcourse.early_exit.rules import ExitRule
from llmcourse.early_exit.skipped import LayerRunner, Skipped, require_skipped


class EarlyExitLogits(CachedLogits):
    """A decoder that leaves early, as a source for `decoding.generate` and `stream`.

    Args:
        heads: the exits, and with them the model.
        rule: lets a token go. Its history is of the exits that are asked.
        exits: after how many layers it is asked; None: at every exit.
        skipped: what becomes of the keys and values of layers that a token skipped: "propagate" (lossy) or
            "recompute" (exact), as `skipped` explains.

    Attributes:
        exit_layers: after how many layers each token left, row by row, for every step since `start`.
        layers_run: how many layers ran for each row at that step, tokens that were caught up with included.

    Raises:
        TypeError: what are no heads, or no rule.
        ValueError: an exit that is not there, or another way to treat what was skipped.
    """

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
        self.exit_layers: list[list[int]] = []
        self.layers_run: list[list[int]] = []

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Float[Tensor, "B V"]:
        logits = super().start(prompts, capacity)
        lengths, count = [len(prompt) for prompt in prompts], self.model.config.num_layers
        self._runner = LayerRunner(self.model, self.cache, lengths, self.skipped)
        self.exit_layers, self.layers_run = [[count] * len(prompts)], [[count] * len(prompts)]
        return logits

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        x, count = self._runner.begin(tokens), self.model.config.num_layers
        rows, left = list(range(len(tokens))), [count] * len(tokens)
        history: list[Tensor] = []
        found: list[tuple[list[int], Tensor]] = []  # rows, and their logits
        for number in range(1, count):
            x = self._runner.run(number - 1, rows, x)
            if number not in self.exits:
                continue
            history.append(self.heads(number, x)[:, 0])
            goes = asked(self.rule, history)
            if any(goes):
                gone, stays = _indices(goes, True), _indices(goes, False)
                self._runner.leave(number, [rows[i] for i in gone], x[gone])
                found.append(([rows[i] for i in gone], history[-1][gone]))
                for i in gone:
                    left[rows[i]] = number
                rows, x, history = [rows[i] for i in stays], x[stays], [each[stays] for each in history]
            if not rows:
                break
        else:
            x = self._runner.run(count - 1, rows, x)
            found.append((rows, self.model.lm_head(self.model.model.norm(x))[:, 0]))
        self.exit_layers.append(left)
        self.layers_run.append(self._runner.layers_run)
        return _in_order(found)

    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        self._runner.reorder(rows)
        chosen = rows.tolist()
        for record in (self.exit_layers, self.layers_run):
            record[:] = [[step[row] for row in chosen] for step in record]


@dataclass(frozen=True)
class EarlyGeneration:
    """A text, and what it took.

    Attributes:
        generation: as `decoding.generate` returns it.
        exit_layers: after how many layers each of its tokens was chosen; the first, by the prompt's pass,
            after all.
        layers_run: how many layers ran for each, tokens that were caught up with included.
    """

    generation: Generation
    exit_layers: list[int]
    layers_run: list[int]

    @property
    def mean_layers(self) -> float:
        """Layers run per token, the first token aside, which the prompt's pass gives; NaN if it is alone."""
        later = self.layers_run[1:]
        return sum(later) / len(later) if later else float("nan")


def generate_early(
    heads: ExitHeads,
    prompts: Sequence[Sequence[int]],
    rule: ExitRule,
    *,
    exits: Sequence[int] | None = None,
    skipped: Skipped = "propagate",
    **settings,
) -> list[EarlyGeneration]:
    """Decodes a batch with early exit; the other settings, and errors, are those of `decoding.generate`."""
    source = EarlyExitLogits(heads, rule, exits=exits, skipped=skipped)
    generations = generate(source, prompts, **settings)
    return [
        EarlyGeneration(
            generation,
            [step[row] for step in source.exit_layers[: len(generation.tokens)]],
            [step[row] for step in source.layers_run[: len(generation.tokens)]],
        )
        for row, generation in enumerate(generations)
    ]


def require_rule(rule: object) -> None:
    """Raises TypeError for what is no rule, such as a threshold, or the class of one."""
    if isinstance(rule, type) or not isinstance(rule, ExitRule):
        found = f"the class {rule.__name__}" if isinstance(rule, type) else type(rule).__name__
        raise TypeError(f"rule must be an ExitRule, got {found}; make one, as EntropyRule(1.0)")


def asked(rule: ExitRule, history: Sequence[Float[Tensor, "B V"]]) -> list[bool]:
    """What a rule, which anybody may have written, says of each row; waits for the device.

    Raises:
        ValueError: no answer for each row, or one that is neither yes nor no.
    """
    answer: Bool[Tensor, " B"] = rule.exits(history)
    found = (tuple(answer.shape), answer.dtype) if isinstance(answer, Tensor) else type(answer).__name__
    allowed = f"a tensor of shape ({len(history[-1])},) and type bool"
    holds = found == ((len(history[-1]),), torch.bool)
    require(holds, "what exits() of a rule returns", allowed, found, "answer for each row of the history")
    return answer.tolist()


def _indices(flags: Sequence[bool], wanted: bool) -> list[int]:
    return [index for index, flag in enumerate(flags) if flag is wanted]


def _in_order(found: list[tuple[list[int], Tensor]]) -> Float[Tensor, "B V"]:
    """The logits of all rows, which left in groups: row numbers, and the logits `(N, V)` of each."""
    if len(found) == 1:
        return found[0][1]
    order = [row for rows, _ in found for row in rows]
    places = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat([logits for _, logits in found])[places]
