"""Medusa a step at a time: the candidates that were tried, the branch that stood, the text so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral

import torch
from ipywidgets import Play

from llmcourse.decoding import DecodingError, SamplingParams
from llmcourse.decoding.errors import require_number
from llmcourse.figures.candidate_trace import CandidateTrace, candidate_text, record_candidates
from llmcourse.figures.candidate_tree import CandidatePlot
from llmcourse.figures.speculation_strip import strip_html
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.machines import chosen
from llmcourse.figures.widgets.models import NextLogits, ReadyModel
from llmcourse.model import Decoder
from llmcourse.speculative.arguments import check_place
from llmcourse.speculative.medusa import MedusaHeads, MedusaTree, TypicalAcceptance, sparse
from llmcourse.speculative.medusa.heads import check_fits
from llmcourse.tokenizer import Tokenizer

LOSSLESS, TYPICAL = "what keeps the distribution", "what is likely enough: lossy"
MOST_NEW_TOKENS = 128
HOTTEST = 2.0  # temperature: beyond it a backbone's guesses are noise


@dataclass(frozen=True)
class CandidateInputs:
    """What a trace depends on, besides the model and its heads.

    Attributes:
        tree: its name.
        temperature: of the backbone; 0 is greedy decoding.
        accepts: of `LOSSLESS`, `TYPICAL`.
        max_new_tokens: how long the text is.
    """

    prompt: str
    tree: str
    temperature: int | float = 0
    accepts: str = LOSSLESS
    max_new_tokens: int = 24
    seed: int = 0


def trace_candidates(
    ready: ReadyModel, heads: MedusaHeads, tree: MedusaTree, inputs: CandidateInputs
) -> CandidateTrace:
    """Writes the text and takes its steps apart; the same inputs give the same trace.

    Raises:
        ValueError: the prompt is empty or too long, or a setting is out of range.
        DecodingError: what the model says cannot be chosen from.
    """
    ready.read_prompt(inputs.prompt)  # refuses in words for a reader
    generator = torch.Generator().manual_seed(inputs.seed)
    return record_candidates(
        ready.model,
        heads,
        ready.tokenizer,
        inputs.prompt,
        tree=tree,
        max_new_tokens=inputs.max_new_tokens,
        params=SamplingParams(temperature=inputs.temperature),
        typical=TypicalAcceptance() if inputs.accepts == TYPICAL else None,
        generator=generator if inputs.temperature else None,
    )


def longest_branch(trace: CandidateTrace) -> int:
    """The first step whose accepted branch is as long as any."""
    lengths = [len(step.accepted) for step in trace.steps]
    return lengths.index(max(lengths))


class CandidateTreeViewer(v.PromptView):
    """Play, step and slide through `trace_candidates`; every trace is made once and then remembered.

    Args:
        model: the backbone, with its tokenizer.
        heads: trained on it.
        trees: a tree, trees by name, or None for `sparse(number of heads, 4)`.
        prompt, tree, temperature, accepts, seed: what it starts with.
        max_new_tokens: how long the text is, at most 128.
        name: of the model, for titles.

    Raises:
        TypeError: no decoder, no heads, no tokenizer, or a tree of another kind.
        ValueError: heads of another backbone's shape, device or dtype, no tree, one that these heads cannot
            fill or that is too large to be read, no such name, a temperature outside [0, 2], or more
            new tokens than that.
    """

    name = "Candidate tree"

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        heads: MedusaHeads,
        prompt: str = v.EXAMPLES[0],
        *,
        trees: MedusaTree | Mapping[str, MedusaTree] | None = None,
        tree: str | None = None,
        temperature: int | float = 0,
        accepts: str = LOSSLESS,
        seed: int = 0,
        max_new_tokens: int = 24,
        name: str = "base",
    ):
        check_fits(heads, model)
        check_place(heads, model)
        inside, remedy = f"in [0, {HOTTEST:g}]", "use 0 for greedy decoding, 1 for the backbone's own"
        require_number(lambda t: 0 <= t <= HOTTEST, "temperature", inside, temperature, remedy)
        remedy = "a step of each has a picture of its own"
        in_reach = lambda n: 1 <= n <= MOST_NEW_TOKENS  # noqa: E731
        allowed = f"an integer in [1, {MOST_NEW_TOKENS}]"
        require_number(in_reach, "max_new_tokens", allowed, max_new_tokens, remedy, kind=Integral)
        named = _named(trees, heads)
        super().__init__(prompt)
        self.ready, self.heads = ReadyModel(name, model, tokenizer, NextLogits(model)), heads
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.trees = named
        self.plots = {one: CandidatePlot(each) for one, each in self.trees.items()}
        self.traces: dict[CandidateInputs, CandidateTrace] = {}
        self.trace: CandidateTrace | None = None
        self._make_settings(chosen(tree, self.trees, "tree"), temperature, accepts)
        self._make_steps()
        settings = v.row(self.tree, self.accepts, self.temperature)
        self._assemble(settings, v.row(self.step, self.play, self.back, self.forward))
        self.refresh()
        if self.trace is not None:
            self.step.value = longest_branch(self.trace) + 1

    def _make_settings(self, tree: str, temperature: int | float, accepts: str) -> None:
        self.tree = v.dropdown("tree", list(self.trees), tree, "230px")
        chosen(accepts, dict.fromkeys((LOSSLESS, TYPICAL)), "accepts")
        self.accepts = v.dropdown("accepts", [LOSSLESS, TYPICAL], accepts, "280px")
        what = "of the backbone; 0 is greedy, 1 its own"
        self.temperature = v.float_slider("temperature", float(temperature), 0.0, HOTTEST, 0.1, what)
        for control in (self.prompt, self.tree, self.accepts, self.temperature):
            control.observe(lambda _: self.refresh(), "value")

    def _make_steps(self) -> None:
        self.step = v.int_slider("step", 1, 1, 10_000, "a pass of the backbone, which reads a whole tree")
        self.step.layout.width = "420px"
        self.play = Play(min=1, max=10_000, interval=1200, show_repeat=False, description="play")
        self.back = v.button("Back", "one step back", "step-backward")
        self.forward = v.button("Step", "one step on", "step-forward", "primary")
        self.back.on_click(lambda _: self.go(-1))
        self.forward.on_click(lambda _: self.go(1))
        self.step.observe(lambda _: self.refresh(), "value")
        self.play.observe(lambda change: setattr(self.step, "value", change["new"]), "value")

    @property
    def inputs(self) -> CandidateInputs:
        settings = self.tree.value, round(self.temperature.value, 3), self.accepts.value
        return CandidateInputs(self.prompt.value, *settings, self.max_new_tokens, self.seed)

    @v.alone
    def go(self, steps: int) -> None:
        """So many steps on, or back; not past either end."""
        self.step.value += steps

    @v.alone
    def refresh(self) -> None:
        """Finds or makes the trace that the controls ask for, and shows its step."""
        inputs = self.inputs
        try:
            if inputs not in self.traces:
                tree = self.trees[inputs.tree]
                with self.busy():
                    self.traces[inputs] = trace_candidates(self.ready, self.heads, tree, inputs)
        except (ValueError, DecodingError) as error:
            self.trace = None
            self.complain(str(error))
            return
        self.trace = self.traces[inputs]
        last = len(self.trace.steps)
        step = min(self.step.value, last)  # counted from 1
        self.step.max = self.play.max = last  # a shorter trace takes the slider along, which refreshes
        self.back.disabled, self.forward.disabled = step == 1, step == last
        title = f"Medusa on {self.ready.name}, {inputs.tree}, after “{v.end_of(inputs.prompt, 16)}”"
        words = strip_html(candidate_text(self.trace, step - 1), font=False, keys=("accepted", "own"))
        self.show(self.plots[inputs.tree].update(self.trace, step - 1, title), words)


def _named(trees: MedusaTree | Mapping[str, MedusaTree] | None, heads: MedusaHeads) -> dict[str, MedusaTree]:
    """Trees by name, all of which these heads can fill."""
    tree = sparse(heads.config.num_heads, 4) if trees is None else trees
    named = dict(tree) if isinstance(tree, Mapping) else {_size(tree): tree}
    if not named:
        raise ValueError("trees must name at least 1 tree, got none; give {name: sparse(4, 4)}")
    for name, each in named.items():
        if not isinstance(each, MedusaTree):
            found = type(each).__name__
            raise TypeError(f"tree {name!r} must be a MedusaTree, got {found}; make one with full or sparse")
        each.check(heads.config)
    return named


def _size(tree: object) -> str:
    return f"{len(tree)} candidates" if isinstance(tree, MedusaTree) else "given"
