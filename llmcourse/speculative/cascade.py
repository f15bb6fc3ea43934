"""Cascade decoding: ask the cheapest model first, and a dearer one only where a judge doubts the answer.

    for each model, in order of cost:  answer;  stop if P(right | answer) ≥ the stage's threshold
    the last model's answer is kept as it is

Whole answers are judged, not tokens, so that, other than with speculative decoding, the text may be another
than the largest model's: worse where a judge is fooled, better where a small model knows what a large one
does not. (FrugalGPT, Chen et al. 2023, section 3, "LLM cascade".)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require, require_number
from llmcourse.speculative.answers import Answer
from llmcourse.speculative.arguments import require_tensor
from llmcourse.speculative.judge import Judge
from llmcourse.speculative.ledger import Policy, check_order, check_thresholds, require_sequence

Answers = Callable[[Sequence[Any]], Sequence[Answer]]


@dataclass(frozen=True)
class Stage:
    """One model of a cascade.

    Attributes:
        name: of the model, to be shown.
        answers: from questions to answers, one each.
        cost: of an answer on average, at least 0 and finite; in one unit for all stages.
        judge: scores its answers; None for a last stage.

    Raises:
        ValueError: a cost out of its range, no function, or no judge.
    """

    name: str
    answers: Answers
    cost: int | float
    judge: Judge | None = None

    def __post_init__(self):
        able, remedy = callable(self.answers), "wrap a model as ModelAnswers(model, tokenizer)"
        kind = type(self.answers).__name__
        require(able, f"answers of {self.name}", "a function of the questions", kind, remedy)
        judges = isinstance(self.judge, Judge) and not isinstance(self.judge, type)
        kind, remedy = repr(self.judge), "train one with fit_judge"
        require(self.judge is None or judges, f"judge of {self.name}", "a Judge or None", kind, remedy)
        remedy = "measure what an answer costs"
        require_number(
            lambda c: 0 <= c < float("inf"),
            f"cost of {self.name}",
            "at least 0 and finite",
            self.cost,
            remedy,
        )


@dataclass(frozen=True)
class Kept:
    """The answer that a cascade gave to one question.

    Attributes:
        stage: the index of the stage whose answer it is.
        scores: of the judges that were asked; a last stage asks none.
        cost: of all stages that were asked, in the stages' unit.
    """

    answer: Answer
    stage: int
    scores: tuple[float, ...]
    cost: int | float


@dataclass(frozen=True)
class Cascade:
    """Stages in order of cost, with what is enough to stop at each but the last.

    Attributes:
        thresholds: in [0, 1]; an answer is kept if its score is at least that.

    Raises:
        ValueError: no stage, stages that are not in order of cost, a stage before the last without a
            judge, or thresholds that do not fit the stages.
    """

    stages: tuple[Stage, ...]
    thresholds: tuple[int | float, ...] = ()

    def __post_init__(self):
        require_sequence("stages", self.stages, "give a tuple, as (stage,)")
        for index, stage in enumerate(self.stages):
            kind, remedy = type(stage).__name__, "make one of each model and its judge"
            require(isinstance(stage, Stage), f"stages[{index}]", "a Stage", kind, remedy)
        require(len(self.stages) > 0, "stages", "at least one", 0, "give the models from the cheapest on")
        check_order("cost of the stages", [stage.cost for stage in self.stages])
        check_thresholds(self.thresholds, len(self.stages))
        for stage in self.stages[:-1]:
            judged, remedy = stage.judge is not None, "train one with fit_judge"
            require(
                judged, f"judge of {stage.name}", "given for all stages but the last", stage.judge, remedy
            )

    @classmethod
    def of(cls, stages: Sequence[Stage], policy: Policy) -> Cascade:
        """The stages that a policy names, with its thresholds.

        Raises:
            ValueError: it names a stage that is not there.
        """
        last, remedy = len(stages) - 1, "give the stages of the ledger that it was found on"
        require(policy.models[-1] <= last, "models", f"in [0, {last}]", policy.models, remedy)
        return cls(tuple(stages[model] for model in policy.models), policy.thresholds)

    def answer(self, questions: Sequence[Any]) -> list[Kept]:
        """One answer for each question; each stage is asked once, about those that are still open."""
        kept: dict[int, Kept] = {}
        open_ = list(range(len(questions)))
        past: dict[int, tuple[float, ...]] = {index: () for index in open_}
        cost: int | float = 0
        for number, stage in enumerate(self.stages):
            if not open_:
                break
            answers = stage.answers([questions[index] for index in open_])
            found, remedy = len(answers), "give one for each question, in order"
            require(found == len(open_), f"number of answers of {stage.name}", f"{len(open_)}", found, remedy)
            cost += stage.cost
            last = number == len(self.stages) - 1
            scores = None if last else judged(stage.judge, answers)
            for place, (index, answer) in enumerate(zip(open_, answers, strict=True)):
                if not last:
                    past[index] += (scores[place].item(),)
                if last or past[index][-1] >= self.thresholds[number]:
                    kept[index] = Kept(answer, number, past[index], cost)
            open_ = [index for index in open_ if index not in kept]
        return [kept[index] for index in range(len(questions))]


def stack_features(answers: Sequence[Answer]) -> Float[Tensor, "N F"]:
    """The features of answers, a row each, as judges take them.

    Raises:
        ValueError: something that is no answer, or answers with unequally many features.
    """
    remedy = "return Answers, all of one model and one kind of question"
    for index, answer in enumerate(answers):
        kind = type(answer).__name__
        require(isinstance(answer, Answer), f"answers[{index}]", "an Answer", kind, remedy)
        wanted, found = len(answers[0].features), len(answer.features)
        require(found == wanted, f"answers[{index}]", f"of {wanted} features as the first", found, remedy)
    return torch.tensor([answer.features for answer in answers], dtype=torch.float64)


def judged(judge: Judge, answers: Sequence[Answer]) -> Float[Tensor, " N"]:
    """The scores of answers.

    Raises:
        ValueError: a score outside [0, 1], or another number of them than answers.
    """
    scores = judge.scores(stack_features(answers))
    require_tensor("scores", scores)
    expected, remedy = (len(answers),), "return one probability for each answer"
    require(tuple(scores.shape) == expected, "scores", f"of shape {expected}", tuple(scores.shape), remedy)
    wrong = scores[~((scores >= 0) & (scores <= 1))]
    if len(wrong):
        require(False, "scores", "in [0, 1]", wrong[0].item(), "return probabilities, not logits")
    return scores
