"""Expert, amateur and their difference, a token at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmcourse.decoding import DecodingError, NonFiniteLogitsError
from llmcourse.decoding.contrastive import check_vocabularies
from llmcourse.figures.contrast import Contrast, ContrastPlot, contrast
from llmcourse.figures.text_strip import TextStrip
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.models import Models, ModelShelf, ReadyModel

ROWS = 9


@dataclass(frozen=True)
class ContrastInputs:
    """What the picture depends on, besides the two models."""

    prompt: str
    alpha: float = 0.1
    amateur_temperature: float = 1.0
    chosen: tuple[v.Chosen, ...] = ()


@dataclass(frozen=True)
class ContrastState:
    """What follows from the inputs."""

    contrast: Contrast
    expert_log_probs: torch.Tensor  # (V,)
    strip: TextStrip
    ended: str

    def choose(self, token: int) -> v.Chosen:
        return v.Chosen(token, float(self.expert_log_probs[token]))


def compare(
    expert: ReadyModel, amateur: ReadyModel, inputs: ContrastInputs, rows: int = ROWS
) -> ContrastState:
    """Both models' next-token distributions after one text, and the contrastive score.

    Raises:
        ValueError: the prompt is empty or too long, a setting is out of range, or the models do
            not share a vocabulary.
        DecodingError: a model's logits are not finite.
    """
    sizes = expert.model.config.vocab_size, amateur.model.config.vocab_size
    check_vocabularies(*sizes)
    tokens = expert.read_prompt(inputs.prompt) + [c.token for c in inputs.chosen]
    limit = min(expert.next_logits.max_length, amateur.next_logits.max_length)
    if len(tokens) > limit:
        raise ValueError(f"The text has {len(tokens):,} tokens, and both models read at most {limit:,}.")
    logits = []
    for ready in (expert, amateur):
        logits.append(ready.next_logits(tokens))
        if bool(logits[-1].isnan().any() | logits[-1].isposinf().any()):
            raise NonFiniteLogitsError(
                f"The logits of {ready.name} hold NaN or +inf: its weights are damaged."
            )
    strengths = {"alpha": inputs.alpha, "amateur_temperature": inputs.amateur_temperature}
    return ContrastState(
        contrast=contrast(*logits, expert.tokenizer.label, rows=rows, **strengths),
        expert_log_probs=logits[0].log_softmax(-1),
        strip=v.written(expert, inputs.prompt, inputs.chosen),
        ended=_end(expert, tokens, limit, inputs.chosen),
    )


def _end(expert: ReadyModel, tokens: list[int], limit: int, chosen: tuple[v.Chosen, ...]) -> str:
    if chosen and tokens[-1] in expert.model.config.eos_token_ids:
        return f"The text ended with {expert.tokenizer.label(tokens[-1])}: undo, or restart."
    return f"The context of {limit:,} tokens is full: undo, or restart." if len(tokens) >= limit else ""


class ContrastViewer(v.PromptView):
    """Controls over `compare`, and buttons that append either side's choice.

    Args:
        models: {name: (model, tokenizer)}, names to load when chosen, or None for the embedded ones.
        expert, amateur: names; by default the first and the last model.
        prompt, alpha, amateur_temperature: what it starts with.
    """

    name = "Expert and amateur"

    def __init__(
        self,
        models: Models = None,
        prompt: str = v.EXAMPLES[0],
        *,
        expert: str | None = None,
        amateur: str | None = None,
        alpha: float = 0.1,
        amateur_temperature: float = 1.0,
    ):
        super().__init__(prompt)
        self.shelf = ModelShelf(models)
        self.chosen: tuple[v.Chosen, ...] = ()
        self.state: ContrastState | None = None
        self.plots: dict[int, ContrastPlot] = {}  # by rows: a small vocabulary has fewer
        self.expert = v.dropdown("expert", self.shelf.names, expert or self.shelf.names[0])
        self.amateur = v.dropdown("amateur", self.shelf.names, amateur or self.shelf.names[-1])
        what = "plausible: at least alpha times the expert's highest probability"
        self.alpha = v.float_slider("alpha (of top)", alpha, 0.0, 1.0, 0.01, what)
        what = "below 1 the amateur is blamed for less"
        temperature = v.float_slider("amateur temp.", amateur_temperature, 0.1, 3.0, 0.1, what)
        self.amateur_temperature = temperature
        self._make_buttons()
        buttons = v.row(self.step, self.step_expert, self.undo, self.restart)
        self._assemble(v.row(self.expert, self.amateur), v.row(self.alpha, temperature), buttons)
        for control in (self.alpha, temperature, self.amateur):
            control.observe(lambda _: self.refresh(), "value")
        for control in (self.prompt, self.expert):
            control.observe(lambda _: self.start_again(), "value")
        self.refresh()

    def _make_buttons(self) -> None:
        what = "append the token of the highest score"
        self.step = v.button("Step (contrastive)", what, "step-forward", "primary")
        self.step_expert = v.button("Step (expert alone)", "append the expert's likeliest token")
        self.undo = v.button("Undo", "take the last token back", "undo")
        self.restart = v.button("Restart", "back to the prompt")
        self.step.on_click(lambda _: self.append("contrastive_choice"))
        self.step_expert.on_click(lambda _: self.append("expert_choice"))
        self.undo.on_click(lambda _: self.take_back())
        self.restart.on_click(lambda _: self.start_again())

    @property
    def text(self) -> str:
        """The prompt and what was appended to it."""
        return self.state.strip.text if self.state else self.prompt.value

    @v.alone
    def append(self, whose: str) -> None:
        """Appends the token that `Contrast` names, unless the text has ended or the input is wrong."""
        if self.state is not None and not self.state.ended:
            self.chosen += (self.state.choose(getattr(self.state.contrast, whose)),)
            self.refresh()

    @v.alone
    def take_back(self) -> None:
        self.chosen = self.chosen[:-1]
        self.refresh()

    @v.alone
    def start_again(self) -> None:
        self.chosen = ()
        self.refresh()

    @v.alone
    def refresh(self) -> None:
        """Computes the state from the controls, and shows it."""
        strengths = self.alpha.value, self.amateur_temperature.value
        inputs = ContrastInputs(self.prompt.value, *strengths, self.chosen)
        expert, amateur = self.expert.value, self.amateur.value
        try:
            self.state = compare(self.shelf.get(expert), self.shelf.get(amateur), inputs)
        except (ValueError, DecodingError, FileNotFoundError) as error:
            self.state = None
            self.complain(str(error))
        else:
            title = f"{expert} minus {amateur}, after “{v.end_of(self.state.strip.text)}”"
            rows = len(self.state.contrast.labels)
            if rows not in self.plots:
                self.plots[rows] = ContrastPlot(rows)
            picture = self.plots[rows].update(self.state.contrast, title, expert=expert, amateur=amateur)
            self.show(picture, v.strip_of(self.state.strip))
            if self.state.ended:
                self.note(self.state.ended)
        stuck = self.state is None or bool(self.state.ended)
        self.step.disabled = self.step_expert.disabled = stuck
        self.undo.disabled = not self.chosen
