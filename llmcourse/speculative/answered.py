"""Questions that all models have answered, once: what judges are trained and cascades compared on.

Asking is slow and everything after it quick, so what was answered can be written to a file of JSON and read
from it. The three sides of the split stay apart: judges see the first, thresholds the second.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.speculative.answers import Answer
from llmcourse.speculative.cascade import judged, stack_features
from llmcourse.speculative.judge import Judge, LogisticJudge, fit_judge
from llmcourse.speculative.ledger import Ledger
from llmcourse.speculative.tasks.question import SPLITS, Question, Split, split_of

DIGITS = 4  # of features that are written; a judge needs no more


@dataclass(frozen=True)
class Answered:
    """N questions and the answers of M models to them.

    Attributes:
        names: of the models, in order of cost.
        documents: where each question comes from, which decides its side of the split.
        answers: those of each model.
        right: whether each is.

    Raises:
        ValueError: no question, no model, or lengths that differ.
    """

    names: tuple[str, ...]
    documents: tuple[str, ...]
    answers: tuple[tuple[Answer, ...], ...]
    right: Bool[Tensor, "N M"]

    def __post_init__(self):
        require(len(self.names) > 0, "names", "those of at least one model", self.names, "name the models")
        require(len(self.documents) > 0, "documents", "at least one", 0, "ask at least one question")
        shape, remedy = (len(self.documents), len(self.names)), "let every model answer every question"
        lengths = [len(answers) for answers in self.answers]
        require(lengths == [shape[0]] * shape[1], "answers", f"{shape[0]} of each model", lengths, remedy)
        require(tuple(self.right.shape) == shape, "right", f"of shape {shape}", self.right.shape, remedy)

    @classmethod
    def of(cls, questions: Sequence[Question], answers: Mapping[str, Sequence[Answer]]) -> Answered:
        """Checks the answers of each model, by its name."""
        columns = [
            [question.correct(answer.text) for question, answer in zip(questions, given, strict=True)]
            for given in answers.values()
        ]
        return cls(
            tuple(answers),
            tuple(question.document for question in questions),
            tuple(map(tuple, answers.values())),
            torch.tensor(columns, dtype=torch.bool).T,
        )

    def side(self, side: Split) -> Answered:
        """The questions of one side of the split.

        Raises:
            ValueError: there are none, or no side of this name.
        """
        require(side in SPLITS, "side", f"one of {', '.join(SPLITS)}", repr(side), "choose one")
        rows = [index for index, document in enumerate(self.documents) if split_of(document) == side]
        return Answered(
            self.names,
            tuple(self.documents[row] for row in rows),
            tuple(tuple(answers[row] for row in rows) for answers in self.answers),
            self.right[rows],
        )

    @functools.cached_property
    def features(self) -> tuple[Float[Tensor, "N F"], ...]:
        """What judges see of the answers, a matrix for each model."""
        return tuple(map(stack_features, self.answers))

    def judges(self, columns: Sequence[int] | None = None, penalty: int | float = 1.0) -> list[LogisticJudge]:
        """A judge for each model, trained on these questions; arguments as `fit_judge`."""
        return [
            fit_judge(features, right, columns=columns, penalty=penalty)
            for features, right in zip(self.features, self.right.T, strict=True)
        ]

    def mean_lengths(self) -> list[tuple[int, int]]:
        """Tokens of a prompt and of an answer, on average, for each model: what `answer_cost` asks for."""
        count = len(self.documents)
        return [
            (
                round(sum(answer.num_prompt_tokens for answer in answers) / count),
                max(1, round(sum(answer.num_new_tokens for answer in answers) / count)),
            )
            for answers in self.answers
        ]

    def ledger(self, judges: Sequence[Judge], costs: Sequence[int | float]) -> Ledger:
        """With the scores of these judges, and what an answer of each model costs.

        Raises:
            ValueError: not one of each for every model, or what `Ledger` refuses.
        """
        count, remedy = len(self.names), "give one for each model"
        for name, given in (("judges", judges), ("costs", costs)):
            require(len(given) == count, name, f"{count}", len(given), remedy)
        scores = [judged(judge, answers) for judge, answers in zip(judges, self.answers, strict=True)]
        quality = self.right.double()
        cost = torch.tensor(list(costs), dtype=torch.float64).expand_as(quality)
        return Ledger(quality, cost, torch.stack(scores, 1))

    def to_json(self) -> dict[str, Any]:
        """As lists and numbers; features are rounded."""
        answers = {
            name: [
                [
                    answer.text,
                    int(right),
                    answer.num_prompt_tokens,
                    answer.num_new_tokens,
                    *(float(f"{value:.{DIGITS}g}") for value in answer.features),
                ]
                for answer, right in zip(given, self.right[:, column].tolist(), strict=True)
            ]
            for column, (name, given) in enumerate(zip(self.names, self.answers, strict=True))
        }
        return {"documents": list(self.documents), "answers": answers}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Answered:
        """What `to_json` made."""
        given = content["answers"]
        answers = tuple(
            tuple(
                Answer(text, tuple(features), num_prompt_tokens, num_new_tokens)
                for text, _, num_prompt_tokens, num_new_tokens, *features in rows
            )
            for rows in given.values()
        )
        right = torch.tensor([[row[1] for row in rows] for rows in given.values()], dtype=torch.bool).T
        return cls(tuple(given), tuple(content["documents"]), answers, right)
