"""What is seen of an answer, against the loop's own record of it; and what an answer costs."""

from __future__ import annotations

import math

import pytest
import torch

from llmcourse import pretrained
from llmcourse.costs import MODELS, Step, model_costs, total
from llmcourse.decoding import generate
from llmcourse.speculative.answers import CONFIDENCE, FEATURES, ModelAnswers, answer_cost
from llmcourse.speculative.tasks.code_lines import CodeLine


@pytest.fixture(scope="module")
def draft() -> pretrained.Pretrained:
    return pretrained.load("draft")


@pytest.fixture(scope="module")
def questions(draft) -> list[CodeLine]:
    starts = ("def area(width, ", "import os\nimport ", "for i in range(", "class A:\n    def __init__(")
    return [CodeLine("a", tuple(draft.tokenizer.encode_prompt(s)), s, s) for s in starts]


def test_features_are_those_of_the_text(draft, questions):
    """Every distribution is computed again, without a cache, from the whole text."""
    model, tokenizer = draft
    for question, answer in zip(questions, ModelAnswers(*draft, max_new_tokens=9)(questions), strict=True):
        (one,) = generate(model, [question.prompt], tokenizer=tokenizer, max_new_tokens=9, stop="\n")
        assert answer.text == one.text
        assert (answer.num_prompt_tokens, answer.num_new_tokens) == (len(question.prompt), len(one.tokens))
        logits = model(torch.tensor([[*question.prompt, *one.tokens]]))[0, len(question.prompt) - 1 : -1]
        log_probs = logits.double().log_softmax(-1)
        chosen = log_probs[range(len(one.tokens)), one.tokens]
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        top = log_probs.topk(2).values
        expected = {
            "mean log-probability": chosen.mean(),
            "lowest log-probability": chosen.min(),
            "first log-probability": chosen[0],
            "last log-probability": chosen[-1],
            "log-probability of the text": chosen.sum(),
            "mean entropy": entropy.mean(),
            "highest entropy": entropy.max(),
            "smallest margin": (top[:, 0] - top[:, 1]).min(),
            "tokens": len(one.tokens),
            "ended by itself": one.finish_reason == "stop",
        }
        assert tuple(expected) == FEATURES
        assert answer.features[:-1] == pytest.approx([float(v) for v in expected.values()], abs=1e-4)
        assert answer.features[-1:] == question.observed(answer.text)
    assert FEATURES[CONFIDENCE] == "mean log-probability"


def test_batches_make_no_difference(draft, questions):
    together, apart = (ModelAnswers(*draft, batch=batch)(questions) for batch in (3, 1))
    assert [answer.text for answer in together] == [answer.text for answer in apart]
    for one, other in zip(together, apart, strict=True):
        assert one.features == pytest.approx(other.features, abs=1e-4)


def test_the_cost_is_that_of_the_passes():
    shapes = MODELS["base"]
    steps = [Step.prefill(1, 7, logit_positions=1), Step.decode(1, 8), Step.decode(1, 9)]
    expected = total(cost for step in steps for cost in model_costs(shapes, step))
    assert answer_cost(shapes, 7, 3) == expected
    per_token = 2 * 10_600_000
    assert math.isclose(answer_cost(shapes, 1, 1).matmul_flops, per_token, rel_tol=0.1)


@pytest.mark.parametrize("name", ["max_new_tokens", "batch"])
def test_numbers_too_small_are_refused(name, draft):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
        ModelAnswers(*draft, **{name: 0})


def test_prompts_without_room_and_empty_answers_are_refused(draft):
    full = CodeLine("a", (5,) * 1024, "x", "x")
    with pytest.raises(ValueError, match="prompt must be at most 1023 tokens long, got 1024; show fewer"):
        ModelAnswers(*draft)([full])
    with pytest.raises(ValueError, match="num_new_tokens must be an integer of at least 1, got 0"):
        answer_cost(MODELS["base"], 5, 0)
