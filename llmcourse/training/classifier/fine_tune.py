"""Fine-tuning of one method's classifier on one task, stage by stage."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.early_exit.classifier.encoded import Encoded
from llmcourse.early_exit.classifier.encoder import MASK, NUM_SPECIAL, Encoder
from llmcourse.early_exit.classifier.exits import ExitClassifier
from llmcourse.early_exit.classifier.methods import Method
from llmcourse.training.paced import Pace, Trained, random_devices, train


@dataclass(frozen=True)
class Tuning:
    """How a classifier is fine-tuned.

    Attributes:
        batch_size: texts a step.
        lr: AdamW's peak rate.
        hidden: share of the tokens that are masked in training, so that no text is learned by heart.
        epochs: at most so many passes over the data, however many steps are asked for.
    """

    batch_size: int = 64
    lr: float = 5e-4
    weight_decay: float = 0.05
    hidden: float = 0.1
    epochs: int = 20

    def most_steps(self, data: Encoded) -> int:
        """At least 1."""
        return max(1, self.epochs * len(data) // self.batch_size)


def batches(
    data: Encoded, tuning: Tuning, generator: torch.Generator
) -> Iterator[tuple[Int[Tensor, "B T"], Int[Tensor, " B"]]]:
    """Endless batches of rows and labels in random order, some tokens hidden; on the data's device.

    Args:
        generator: on that device.
    """
    size = min(tuning.batch_size, len(data))
    while True:
        order = torch.randperm(len(data), generator=generator, device=data.labels.device)
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            tokens = data.tokens[chosen]
            draw = torch.rand(tokens.shape, generator=generator, device=tokens.device)
            hidden = (draw < tuning.hidden) & (tokens >= NUM_SPECIAL)
            yield torch.where(hidden, MASK, tokens), data.labels[chosen]


def start(
    method: Method, encoder: Encoder, num_classes: int, seed: int, previous: ExitClassifier | None = None
) -> ExitClassifier:
    """A classifier before its training, over a copy of the pre-trained encoder.

    Args:
        seed: of the exits' first weights.
        previous: the trained classifier of the method that this one comes after.

    Raises:
        ValueError: that is missing.
    """
    with torch.random.fork_rng(devices=random_devices(encoder.device)):
        torch.manual_seed(seed)
        own = copy.deepcopy(encoder).to("cpu")
        classifier = method.build(own, num_classes).to(encoder.device)
    if method.adopt is not None:
        there, remedy = previous is not None, f"train {method.after} first"
        require(there, "previous", f"the classifier of {method.after}", previous, remedy)
        method.adopt(classifier, previous)
    return classifier


def fine_tune(
    method: Method,
    classifier: ExitClassifier,
    data: Encoded,
    steps: int,
    *,
    name: str,
    tuning: Tuning | None = None,
    seed: int = 0,
    compile_layers: bool = False,
    recorded: bool = False,
) -> Trained:
    """Trains a classifier in place, and leaves it ready to answer.

    By steps alone, never by the clock: methods whose steps take longer get as many.

    Args:
        data: on the classifier's device.
        steps: of each stage; no more than `Tuning.epochs` allows.
        name: of the bar.
        compile_layers: with `torch.compile`, layer by layer: they share one program.
        recorded: a step as a CUDA graph.

    Returns:
        the last stage's end.

    Raises:
        FloatingPointError, KeyboardInterrupt: as `paced.train`.
    """
    tuning, device = tuning or Tuning(), classifier.encoder.device
    if compile_layers:
        for layer in classifier.encoder.layers:
            layer.compile()
    pace = Pace(min(steps, tuning.most_steps(data)))
    classifier.train()
    with torch.random.fork_rng(devices=random_devices(device)):
        torch.manual_seed(seed)  # of dropout
        for stage in method.stages:
            drawn = batches(data, tuning, torch.Generator(device).manual_seed(seed))
            trained = stage.trained(classifier)
            optimizer = torch.optim.AdamW(
                trained, tuning.lr, weight_decay=tuning.weight_decay, fused=device.type == "cuda"
            )
            loss_of = lambda tokens, labels, loss=stage.loss: loss(classifier, tokens, labels)  # noqa: E731
            end = train(name, loss_of, drawn, [optimizer], pace, device, recorded=recorded)
            classifier.zero_grad(set_to_none=True)
    classifier.eval()
    return end
