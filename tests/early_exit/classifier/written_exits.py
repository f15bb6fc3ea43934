"""Recorded exits of two tasks that were never trained: later exits are right more often and surer of it."""

import torch

from llmcourse.early_exit.classifier.methods import METHODS

DEPTH, SIZE = 4, 60
EXITS = {m.name: tuple(range(1, DEPTH + 1)) for m in METHODS}
EXITS |= {"full": (DEPTH,), "half_depth": (DEPTH // 2,)}


def content() -> dict:
    generator = torch.Generator().manual_seed(0)
    tasks = {}
    for task in ("first", "second"):
        sides = {}
        for side in ("validation", "test"):
            labels = torch.randint(2, (SIZE,), generator=generator)
            sides[side] = {"labels": labels.tolist(), "documents": list(range(SIZE))}
            for name, exits in EXITS.items():
                logits = torch.randn(SIZE, len(exits), 2, generator=generator)
                logits[torch.arange(SIZE), :, labels] += torch.tensor(exits) / 2.0
                sides[side][name] = (100 * logits).round().int().tolist()
        tasks[task] = {"classes": ["no", "yes"], **sides}
    return {"depth": DEPTH, "scale": 0.01, "exits": {n: list(e) for n, e in EXITS.items()}, "tasks": tasks}
