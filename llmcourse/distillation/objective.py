"""What a student is trained by: it reads a batch, and the loss compares what it says with what was told."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse.distillation.feature_loss import FeatureLoss
from llmcourse.distillation.features import read_features
from llmcourse.distillation.losses import IGNORED, Response, hard_loss, response_loss
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.stored_teacher import stored_loss_of_hidden
from llmcourse.distillation.teacher import Told
from llmcourse.kernels.vocabulary_divergence import vocabulary_divergence
from llmcourse.model import Decoder


class Objective(nn.Module):
    """The loss of a batch; its parameters are what is trained: the student, and what helps it learn.

    On a GPU the divergence over the whole vocabulary is taken by `kernels.vocabulary_divergence`, which never
    holds all logits; elsewhere by `losses`, the slow truth.

    Args:
        teacher: for the widths that projections must have; it is not kept.
        fused: None decides by the device.
    """

    def __init__(
        self,
        distillation: Distillation,
        student: Decoder,
        teacher: Decoder | None = None,
        *,
        fused: bool | None = None,
    ):
        super().__init__()
        self.distillation, self.student = distillation, student
        self.fused = student.device.type == "cuda" if fused is None else fused
        student.rope(torch.zeros(1, 1, dtype=torch.long, device=student.device))  # else it would compile anew
        self.feature_loss, layers = None, ()
        if distillation.features is not None:
            layer_map = distillation.pairs(student, teacher)
            shapes = student.config, teacher.config
            self.feature_loss = FeatureLoss(*shapes, layer_map, distillation.features)
            layers = layer_map.student_layers
        self._run = partial(read_features, student, layers=layers)

    def compile_parts(self, *, by_layer: bool) -> None:
        """Compiles the student's pass, as a whole or each layer apart, which `shards` has to come between."""
        if by_layer:
            for layer in self.student.model.layers:
                layer.compile()
        else:
            self._run, self._tokens = torch.compile(self._run), torch.compile(self._tokens)

    def forward(
        self, rows: Int[Tensor, "B T"], labels: Int[Tensor, "B T"], told: Told, own: bool = False
    ) -> Float[Tensor, ""]:
        """In nats a token.

        Args:
            labels: the token behind each, or −100 where nothing is learned.
            own: the student wrote the rows, and is not to learn by heart what it said.
        """
        hidden, features = self._run(rows)
        loss = self._on_top(hidden, labels, told, own)
        if self.feature_loss is None:
            return loss
        return loss + self.feature_loss(features, told.features, labels != IGNORED)

    def _on_top(
        self, hidden: Float[Tensor, "B T C"], labels: Int[Tensor, "B T"], told: Told, own: bool
    ) -> Float[Tensor, ""]:
        """What the last hidden states say of the next token, compared with the teacher or the text."""
        response = self.distillation.response
        if response is None:
            return self._tokens(hidden, labels)
        response = replace(response, hard_weight=0.0) if own else response
        if told.top_k is not None:
            return stored_loss_of_hidden(response, hidden, self.student.lm_head, told.top_k, labels)
        return self._whole_vocabulary(response, hidden, labels, told)

    def _tokens(self, hidden: Float[Tensor, "B T C"], labels: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
        return hard_loss(self.student.lm_head(hidden), labels)

    def _whole_vocabulary(
        self, response: Response, hidden: Float[Tensor, "B T C"], labels: Int[Tensor, "B T"], told: Told
    ) -> Float[Tensor, ""]:
        if not self.fused:
            logits = self.student.lm_head(hidden), nn.functional.linear(told.hidden, told.head)
            return response_loss(response, *logits, labels)
        return vocabulary_divergence(
            hidden.flatten(0, 1),
            self.student.lm_head.weight,
            told.hidden.flatten(0, 1),
            told.head,
            labels.flatten(),
            divergence=response.divergence,
            beta=response.beta,
            temperature=response.temperature,
            hard_weight=response.hard_weight,
        )
