"""What every exit said of every text, as a benchmark recorded it: speed against score, without a classifier.

Logits are all that a rule asks for, so any threshold can be tried on them at once, on any machine. Rules are
chosen on the validation side; what they come to is read from the test side.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require_number
from llmcourse.early_exit.classifier.equal_speed import layers_of
from llmcourse.early_exit.classifier.methods import METHODS, Method
from llmcourse.early_exit.classifier.taken import Rule, exits_taken, mean_layers

DAMAGED = (KeyError, TypeError, ValueError, OverflowError, RuntimeError, EOFError, lzma.LZMAError)


@dataclass(frozen=True)
class Recorded:
    """One method's exits on one task.

    Attributes:
        depth: layers of the full model.
        exits: after which layers they are.
        validation, test: logits of N texts at E exits.
    """

    task: str
    method: Method
    depth: int
    exits: tuple[int, ...]
    validation: Float[Tensor, "N E K"]
    test: Float[Tensor, "N E K"]
    labels: Int[Tensor, " N"]  # of the test side


@dataclass(frozen=True)
class Reached:
    """What a rule comes to on the test side.

    Attributes:
        score: percent of right answers.
        speed_up: layers of the full model over the mean of those that run.
    """

    rule: Rule | None
    score: float
    speed_up: float


def read_recorded(path: Path) -> list[Recorded]:
    """All tasks and methods of a file that the table's benchmark wrote, JSON packed by xz.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is another file's, or damaged.
    """
    try:
        content = json.loads(lzma.decompress(path.read_bytes()))
        found = [_one(content, task, method) for task in content["tasks"] for method in METHODS]
        if not found:
            raise ValueError("no tasks")
        return found
    except DAMAGED as error:
        raise ValueError(f"{path.name} holds no exits of the table ({error!r}); record it again") from error


def _one(content: dict[str, Any], task: str, method: Method) -> Recorded:
    sides = content["tasks"][task]
    validation, test = (
        torch.tensor(sides[side][method.name], dtype=torch.float32) * content["scale"]
        for side in ("validation", "test")
    )
    depth, exits = content["depth"], tuple(content["exits"][method.name])
    labels = torch.tensor(sides["test"]["labels"])
    found = Recorded(task, method, depth, exits, validation, test, labels)
    if reason := _damage(found):
        raise ValueError(f"{method.name} on {task}: {reason}")
    return found


def _damage(found: Recorded) -> str | None:
    """What is wrong with numbers that were read, if anything."""
    exits = found.exits
    whole = bool(exits) and all(type(number) is int for number in (found.depth, *exits))
    if not whole or any(one >= other for one, other in pairwise((0, *exits, found.depth + 1))):
        return f"exits {exits} of {found.depth} layers"
    if found.labels.dim() != 1 or found.labels.is_floating_point():
        return "labels that are no list of classes"
    shape = (len(found.labels), len(exits))
    if (
        found.test.dim() != 3
        or found.test.shape[:2] != shape
        or found.validation.shape[1:] != found.test.shape[1:]
    ):
        return f"{tuple(found.test.shape)} logits"
    if found.test.shape[-1] < 2 or not 0 <= found.labels.min() <= found.labels.max() < found.test.shape[-1]:
        return "labels of other classes"
    finite = all(bool(logits.isfinite().all()) for logits in (found.validation, found.test))
    return None if finite and bool(found.test.any()) else "logits that are none"


def reached(recorded: Recorded, rule: Rule | None) -> Reached:
    """Answers the test with a rule; None runs all layers."""
    taken = exits_taken(recorded.test, rule)
    answers = recorded.test[torch.arange(len(taken)), taken].argmax(-1)
    score = 100 * (answers == recorded.labels).double().mean().item()
    return Reached(rule, score, recorded.depth / mean_layers(taken, recorded.exits))


def trade_off(recorded: Recorded, speed_ups: Sequence[int | float]) -> list[Reached]:
    """What the method's rules for some speed-ups come to on the test; they are chosen on validation data.

    Args:
        speed_ups: in layers, each from 1 to the depth.

    Returns:
        a point for each, the slowest first, equal ones once; a single one for a method without a choice.

    Raises:
        ValueError: a speed-up out of its range.
    """
    inside = lambda x: 1 <= x <= recorded.depth  # noqa: E731
    for speed_up in speed_ups:
        allowed = f"in [1, {recorded.depth}]"
        require_number(inside, "speed_up", allowed, speed_up, "2 runs half of the layers")
    method, seen, exits = recorded.method, recorded.validation, recorded.exits
    if method.rules is None:
        return [reached(recorded, None)]
    rules = method.rules(seen)
    means = layers_of(rules, seen, exits)
    budgets = [min(recorded.depth / speed_up, exits[-1]) for speed_up in speed_ups]
    chosen = [method.choose(rules, seen, exits, budget, means=means) for budget in budgets]
    found = {reached(recorded, rule) for rule in set(chosen)}
    return sorted(found, key=lambda point: (point.speed_up, -point.score))


def always_at_one(recorded: Recorded) -> list[Reached]:
    """What is reached without a rule: all texts leave at the same exit, the last one first.

    A rule is worth what it has above that, at the same speed.
    """
    right = (recorded.test.argmax(-1) == recorded.labels[:, None]).double().mean(0).tolist()
    pairs = zip(right, recorded.exits, strict=True)
    return [Reached(None, 100 * share, recorded.depth / layers) for share, layers in pairs][::-1]


def write_recorded(path: Path, content: dict[str, Any]) -> None:
    """What `read_recorded` reads; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    path.write_bytes(lzma.compress(packed, preset=9))
