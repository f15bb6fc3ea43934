"""Which layer of a student learns from which of its teacher, by strategy, on a map of how alike they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmcourse.distillation.losses import check_vocabularies
from llmcourse.figures.layer_links import COMPARED, STRATEGIES, LayerLinks, layer_likeness, layer_links
from llmcourse.figures.layer_links_plot import LayerLinksPlot
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.machines import chosen
from llmcourse.figures.widgets.models import Models, ModelShelf, ReadyModel
from llmcourse.prompts import CODE, PROSE, VERSE

TEXTS = {"prose": "\n".join(PROSE), "verse": "\n".join(VERSE), "code": "\n".join(CODE)}
MOST_TOKENS = 256  # of a text that are read
WORDS = {
    "uniform": "uniform: the whole depth",
    "skip": "skip: every so many",
    "tail": "tail: the last ones",
    "last": "last: one pair alone",
}


def read_likeness(student: ReadyModel, teacher: ReadyModel, text: str) -> Tensor:
    """`layer_likeness` on the beginning of a text.

    Raises:
        ValueError: different vocabularies, or a text that is too short; the message is for a view's reader.
    """
    check_vocabularies(student.model.config.vocab_size, teacher.model.config.vocab_size)
    contexts = [ready.model.config.max_position_embeddings for ready in (student, teacher)]
    tokens = teacher.tokenizer.encode_prompt(text)[: min(MOST_TOKENS, *contexts)]
    return layer_likeness(student.model, teacher.model, torch.tensor([tokens]))


class LayerMapView(v.View):
    """Controls over `layer_links`; a text is read once by each pair of models.

    Args:
        models: {name: (model, tokenizer)}, names for `pretrained.load`, or None for all embedded ones.
        teacher, student: names; by default the first and the last model.
        strategy: of `STRATEGIES`.
        compared: "hidden", "attention" or "values".
        texts: {name: text}, to choose from for how alike layers are; None for prose, verse and code.

    Raises:
        ValueError: no such model, strategy or comparison, or no text.
    """

    name = "Map of layers"

    def __init__(
        self,
        models: Models = None,
        *,
        teacher: str | None = None,
        student: str | None = None,
        strategy: str = "uniform",
        compared: str = "hidden",
        texts: Mapping[str, str] | None = None,
    ):
        super().__init__()
        self.shelf, self.texts = ModelShelf(models), dict(TEXTS if texts is None else texts)
        if not self.texts:
            raise ValueError(
                "texts must hold at least 1 text, got none; leave them out for prose, verse and code"
            )
        self.plots: dict[tuple[str, str, str], LayerLinksPlot] = {}
        self.links: LayerLinks | None = None
        names = dict.fromkeys(self.shelf.names)
        self.teacher = v.dropdown("teacher", list(names), chosen(teacher, names, "teacher"))
        student = chosen(self.shelf.names[-1] if student is None else student, names, "student")
        self.student = v.dropdown("student", list(names), student)
        ways = [(WORDS[name], name) for name in STRATEGIES]
        strategy = chosen(strategy, STRATEGIES, "strategy")
        self.strategy = v.dropdown("map", ways, strategy, "260px")
        kinds = [(words, name) for name, words in COMPARED.items()]
        self.compared = v.dropdown("compare", kinds, chosen(compared, COMPARED, "compared"), "230px")
        self.text = v.dropdown("likeness on", list(self.texts), next(iter(self.texts)), "200px")
        for control in (self.teacher, self.student, self.strategy, self.compared, self.text):
            control.observe(lambda _: self.refresh(), "value")
        self._assemble(v.row(self.teacher, self.student, self.text), v.row(self.strategy, self.compared))
        self.refresh()

    @v.alone
    def refresh(self) -> None:
        """Reads the text if it is new to the models, and shows the map."""
        student, teacher, text = key = self.student.value, self.teacher.value, self.text.value
        try:
            small, large = (self.shelf.get(name) for name in (student, teacher))
            configs = small.model.config, large.model.config
            self.links = layer_links(*configs, self.strategy.value, self.compared.value)
            if key not in self.plots:
                with self.busy():
                    likeness = read_likeness(small, large, self.texts[text])
                    self.plots[key] = LayerLinksPlot(*configs, likeness, (student, teacher))
        except (ValueError, FileNotFoundError) as error:
            self.links = None
            self.complain(str(error))
            return
        title = f"Which layer of {student} learns from which of {teacher}"
        self.show(self.plots[key].update(self.links, title))
