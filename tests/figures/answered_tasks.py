"""Made-up answers of three models to a hundred questions; their features tell a little of what is right."""

import torch

from llmcourse.figures.cascade_answers import AnsweredTask
from llmcourse.speculative import Answer, Answered
from llmcourse.speculative.answers import FEATURES

NAMES = ("s", "m", "l")
COSTS = {"FLOPs": (1e8, 4e8, 16e8), "seconds": (0.1, 0.2, 0.3)}


def task(seed=0, count=100):
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(count, 3, generator=generator) < torch.tensor([0.4, 0.55, 0.7])
    noise = torch.randn(count, 3, len(FEATURES), generator=generator).double()
    features = (noise + right[..., None]).tolist()
    answers = tuple(
        tuple(Answer(f"{name}<{row}>", tuple(features[row][model]), 9, 3) for row in range(count))
        for model, name in enumerate(NAMES)
    )
    documents = tuple(f"file {row // 2}" for row in range(count))
    return AnsweredTask(Answered(NAMES, documents, answers, right), COSTS, "a machine")
