"""What a student is told at one position of a text: soft labels, by temperature and divergence."""

from __future__ import annotations

import html
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.processors import widen
from llmcourse.distillation.losses import DIVERGENCES, Response, check_vocabularies, relative_entropy
from llmcourse.figures import style as look
from llmcourse.figures.soft_labels import (
    TEMPERATURES,
    ByTemperature,
    SoftLabels,
    by_temperature,
    soft_labels,
)
from llmcourse.figures.soft_labels_plot import SoftLabelsPlot, loss_name
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.machines import chosen
from llmcourse.figures.widgets.models import Models, ModelShelf, ReadyModel
from llmcourse.speculative.theory import acceptance

MOST_TOKENS = 256  # whose logits are kept
CELL = "padding:1px 18px 1px 0"


@dataclass(frozen=True)
class BothLogits:
    """What teacher and student say after each token of a text.

    Attributes:
        apart: KL(teacher ‖ student) after each token, nats.
    """

    tokens: tuple[int, ...]
    teacher: Float[Tensor, "T V"]
    student: Float[Tensor, "T V"]
    apart: Float[Tensor, " T"]

    def follows(self, position: int) -> int | None:
        """The token behind the first `position` ones; None at the end of the text."""
        return self.tokens[position] if position < len(self.tokens) else None


@torch.no_grad()
def read_both(teacher: ReadyModel, student: ReadyModel, prompt: str) -> BothLogits:
    """Each model's logits after every token of a text, in one pass of each.

    Raises:
        ValueError: different vocabularies, or a text that is empty or too long; the message is for the reader
            of a view.
    """
    check_vocabularies(student.model.config.vocab_size, teacher.model.config.vocab_size)
    tokens, _ = (ready.read_prompt(prompt) for ready in (teacher, student))
    if len(tokens) > MOST_TOKENS:
        raise ValueError(
            f"The text has {len(tokens):,} tokens, and at most {MOST_TOKENS} are looked at: shorten it."
        )
    p, q = (
        widen(ready.model(torch.tensor([tokens], device=ready.model.device))[0]).cpu()
        for ready in (teacher, student)
    )
    return BothLogits(tuple(tokens), p, q, relative_entropy(p.log_softmax(-1), q.log_softmax(-1)))


class DistillationExplorer(v.PromptView):
    """Controls over `soft_labels`; a text is read once by each pair of models, and sliders never wait for it.

    Args:
        models: {name: (model, tokenizer)}, names for `pretrained.load`, or None for all embedded ones.
        prompt: the text.
        teacher, student: names; by default the first and the last model.
        position: tokens that are read before the one that is looked at; None for all.
        response: the loss that it starts with.
        squared: whether T² is part of the loss.
        log_scale: of the probabilities.

    Raises:
        ValueError: no such model, or a loss with hard labels.
    """

    name = "Distillation explorer"

    def __init__(
        self,
        models: Models = None,
        prompt: str = v.EXAMPLES[0],
        *,
        teacher: str | None = None,
        student: str | None = None,
        position: int | None = None,
        response: Response | None = None,
        squared: bool = True,
        log_scale: bool = False,
    ):
        start = Response() if response is None else response
        if start.hard_weight:
            raise ValueError(
                f"hard_weight must be 0, got {start.hard_weight}; the view is of soft labels alone"
            )
        super().__init__(prompt)
        self.shelf = ModelShelf(models)
        self.texts: dict[tuple[str, str, str], BothLogits] = {}
        self.curves: dict[tuple, ByTemperature] = {}
        self.plots: dict[tuple[str, str], SoftLabelsPlot] = {}
        self.soft: SoftLabels | None = None
        names = dict.fromkeys(self.shelf.names)
        self.teacher = v.dropdown("teacher", list(names), chosen(teacher, names, "teacher"))
        student = chosen(self.shelf.names[-1] if student is None else student, names, "student")
        self.student = v.dropdown("student", list(names), student)
        self._make_controls(start, squared, log_scale)
        where = v.row(self.teacher, self.student, self.position, self.furthest)
        self._assemble(
            where, v.row(self.divergence, self.beta, self.temperature), v.row(self.squared, self.scale)
        )
        self._read(position)

    def _make_controls(self, start: Response, squared: bool, log_scale: bool) -> None:
        what = "tokens that are read; the next one is predicted"
        self.position = v.int_slider("tokens read", 1, 1, 1, what)
        self.furthest = v.button("Furthest apart", "to where teacher and student differ most")
        kinds = zip(("forward KL", "reverse KL", "Jensen–Shannon"), DIVERGENCES, strict=True)
        self.divergence = v.dropdown("divergence", list(kinds), start.divergence, "230px")
        what = "of Jensen–Shannon: 0 is forward KL, 1 reverse KL"
        self.beta = v.float_slider("β", float(start.beta), 0.0, 1.0, 0.05, what)
        what = "of teacher and student: above 1 it softens both"
        self.temperature = v.choice_slider("temperature T", TEMPERATURES, start.temperature, what)
        self.squared = v.dropdown("loss", [("times T²", True), ("without T²", False)], squared, "190px")
        scales = [("linear", False), ("logarithmic", True)]
        self.scale = v.dropdown("scale of probabilities", scales, log_scale, "290px")
        for control in (
            self.position,
            self.divergence,
            self.beta,
            self.temperature,
            self.squared,
            self.scale,
        ):
            control.observe(self._moved, "value")
        for control in (self.prompt, self.teacher, self.student):
            control.observe(lambda _: self._read(None), "value")
        self.furthest.on_click(lambda _: self.go_furthest())

    def _moved(self, _) -> None:
        self.refresh()

    @property
    def response(self) -> Response:
        return Response(self.divergence.value, self.temperature.value, round(self.beta.value, 3))

    @property
    def _key(self) -> tuple[str, str, str]:
        return self.teacher.value, self.student.value, self.prompt.value

    @v.alone
    def _read(self, position: int | None) -> None:
        """Reads the text if it is new to the models, and shows a position of it; None is the last."""
        try:
            if self._key not in self.texts:
                teacher, student = (self.shelf.get(name) for name in self._key[:2])
                with self.busy():
                    self.texts[self._key] = read_both(teacher, student, self.prompt.value)
        except (ValueError, FileNotFoundError) as error:
            self._stop(str(error))
            return
        count = len(self.texts[self._key].tokens)
        self.position.unobserve(self._moved, "value")  # one picture for all that changes
        try:
            self.position.max = count
            self.position.value = count if position is None else position
        finally:
            self.position.observe(self._moved, "value")
        self.refresh()

    @v.alone
    def go_furthest(self) -> None:
        """Moves to where the two differ most, if there is a text."""
        if self._key in self.texts:
            self.position.value = int(self.texts[self._key].apart.argmax()) + 1

    def _stop(self, message: str) -> None:
        self.soft = None
        self.furthest.disabled = self._key not in self.texts
        self.complain(message)

    @v.alone
    def refresh(self) -> None:
        """Shows the loss at a position, as the controls say."""
        self.beta.disabled = self.divergence.value != "jensen_shannon"
        if self._key not in self.texts:
            return  # what is wrong with the text is said already
        both, position, response = self.texts[self._key], self.position.value, self.response
        logits = both.student[position - 1], both.teacher[position - 1]
        names = self._key[:2]
        tokenizer = self.shelf.get(names[0]).tokenizer
        curve = (*self._key, position, response.divergence, response.beta * (not self.beta.disabled))
        try:
            self.soft = soft_labels(
                *logits, tokenizer.label, response, squared=self.squared.value, follows=both.follows(position)
            )
            if curve not in self.curves:
                self.curves[curve] = by_temperature(*logits, response)
        except ValueError as error:
            self._stop(str(error))
            return
        self.furthest.disabled = False
        if names not in self.plots:
            self.plots[names] = SoftLabelsPlot(teacher=names[0], student=names[1])
        read = tokenizer.decode(list(both.tokens[:position]))
        title = f"{names[0]} teaches {names[1]}, after “{v.end_of(read)}”"
        picture = self.plots[names].update(self.soft, self.curves[curve], title, log_scale=self.scale.value)
        p, q = (each.softmax(-1) for each in logits[::-1])
        self.show(picture, figures_html(self.soft, acceptance(p, q).item()), "".join(self.soft.labels))


def figures_html(data: SoftLabels, accepted: float) -> str:
    """The loss in figures.

    Args:
        accepted: Σ min(p, q) at temperature 1.
    """
    up, down = data.pushed_most
    rows = {
        f"{loss_name(data)}, without T²": f"{data.plain_loss:.4g} nats",
        "loss as it is trained": f"{data.loss:.4g}",
        "pushed upwards in all": f"{data.moved:.4g}",
        "pushed up most, down most": f"{up}, {down}",
        "Σ min(p, q) at T = 1": look.percent(accepted),
    }
    lines = [
        f"<tr><th scope='row' style='{CELL};text-align:left'>{html.escape(name)}</th>"
        f"<td style='{CELL}'>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    ]
    return f"<table style='border-spacing:0;line-height:1.5;margin:6px 0'>{''.join(lines)}</table>"
