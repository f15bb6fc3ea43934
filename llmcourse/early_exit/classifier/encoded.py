"""One side of a task as token rows, and the exits' logits for all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.early_exit.classifier.encoder import PAD, row
from llmcourse.early_exit.classifier.exits import ExitClassifier
from llmcourse.early_exit.classifier.tasks import Side, Task
from llmcourse.tokenizer import Tokenizer

BATCH = 128


@dataclass(frozen=True)
class Encoded:
    """Examples of one side.

    Attributes:
        tokens: padded on the right to one length.
        labels: their classes.
        documents: a number for each document, so that examples of one are known.
    """

    tokens: Int[Tensor, "N T"]
    labels: Int[Tensor, " N"]
    documents: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Encoded:
        return Encoded(self.tokens.to(device), self.labels.to(device), self.documents)

    def texts(self) -> Iterator[Int[Tensor, "1 T"]]:
        """The rows one by one, without padding."""
        for tokens in self.tokens:
            yield tokens[tokens != PAD][None]


def encode(task: Task, side: Side, tokenizer: Tokenizer, length: int) -> Encoded:
    """The examples of a side, cut to at most `length` tokens; `<|pad|>` or `<|sep|>` in a text is text.

    Raises:
        ValueError: no room for a token of each text.
    """
    examples = task.side(side)
    ids: dict[str, list[int]] = {}
    for text in dict.fromkeys(text for example in examples for text in example.texts):
        ids[text] = tokenizer.encode_plain(text)
    rows = [row([ids[t] for t in e.texts], length, first_from_end=task.first_from_end) for e in examples]
    tokens = torch.tensor([[*one, *[PAD] * (length - len(one))] for one in rows])
    number = {document: index for index, document in enumerate(dict.fromkeys(e.document for e in examples))}
    labels = torch.tensor([example.label for example in examples])
    return Encoded(tokens, labels, torch.tensor([number[example.document] for example in examples]))


@torch.inference_mode()
def exit_logits(classifier: ExitClassifier, side: Encoded) -> Float[Tensor, "N E K"]:
    """What every exit says of every text, on the CPU."""
    device = classifier.encoder.device
    parts = [classifier(tokens.to(device)).float().cpu() for tokens in side.tokens.split(BATCH)]
    return torch.cat(parts)
