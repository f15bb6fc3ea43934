"""What `vocabulary_divergence` is asked for, and what it refuses before anything is launched or held."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_dtype, check_kind, check_tensor, is_count

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


@dataclass(frozen=True)
class Objective:
    """What is computed at each position.

    Attributes:
        divergence: "forward_kl", "reverse_kl" or "jensen_shannon".
        beta: β of Jensen–Shannon in [0, 1]. At its ends the divergence itself vanishes; 0 takes forward KL, 1
            reverse KL, its limits over β and 1 − β.
        temperature: T above 0, of both distributions; hard labels are learned at 1.
        hard_weight: w in [0, 1].
        ignore_index: the label of positions that are left out.

    Raises:
        ValueError: another divergence, or a number out of its range.
    """

    divergence: str = "forward_kl"
    beta: int | float = 0.5
    temperature: int | float = 1.0
    hard_weight: int | float = 0.0
    ignore_index: int = -100

    def __post_init__(self):
        if self.divergence not in get_args(Divergence):
            names = ", ".join(map(repr, get_args(Divergence)))
            raise ValueError(f"divergence must be one of {names}, got {self.divergence!r}; choose one")
        for name, remedy in (
            ("beta", "0 is forward KL, 1 reverse KL, 0.5 between them"),
            ("hard_weight", "0 learns from the teacher alone"),
        ):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value!r}; {remedy}")
        if not _is_number(self.temperature) or not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature must be above 0 and finite, got {self.temperature!r}; "
                "use 1 for the distributions as they are"
            )

    @property
    def kind(self) -> str:
        """The divergence that is computed: the ends of Jensen–Shannon are its limits."""
        ends = {0: "forward_kl", 1: "reverse_kl"} if self.divergence == "jensen_shannon" else {}
        return ends.get(self.beta, self.divergence)


def check_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    labels: Tensor | None,
    objective: Objective,
    chunk_rows: int | None,
) -> None:
    """Raises ValueError where `vocabulary_divergence` cannot take them."""
    for side, hidden, head in (
        ("student", student_hidden, student_head),
        ("teacher", teacher_hidden, teacher_head),
    ):
        check_dims(f"{side}_hidden", hidden, "N", "D")
        check_dims(f"{side}_head", head, "V", "D")
        check_dtype(f"{side}_hidden", hidden)
        if head.shape[1] != hidden.shape[1]:
            raise ValueError(
                f"{side}_head must have {hidden.shape[1]} columns as {side}_hidden has, got "
                f"{head.shape[1]}; pass the matrix of that model"
            )
        same = head.dtype if _autocast(hidden.device.type) else hidden.dtype
        check_kind(f"{side}_head", head, hidden, same)
    check_kind("teacher_hidden", teacher_hidden, student_hidden, teacher_hidden.dtype)
    rows, vocab_size = len(student_hidden), len(student_head)
    if not rows or not vocab_size:
        raise ValueError(
            f"student_hidden and student_head must have at least one row, got {rows} and {vocab_size}; "
            "pass a position and a token"
        )
    if len(teacher_head) != vocab_size:
        raise ValueError(
            f"teacher_head must have {vocab_size} rows, one for each of the student's tokens, got "
            f"{len(teacher_head)}; distil from a teacher with the student's vocabulary"
        )
    if len(teacher_hidden) != rows:
        raise ValueError(
            f"teacher_hidden must have {rows} rows as student_hidden has, got {len(teacher_hidden)}; "
            "let both read the same text"
        )
    if labels is None and objective.hard_weight:
        raise ValueError(
            f"labels must be given where hard_weight is {objective.hard_weight}, got None; "
            "give the tokens that follow, or set hard_weight to 0"
        )
    if labels is not None:
        remedy, given = "pass one label for each position", labels.contiguous()
        check_tensor("labels", given, (rows,), student_hidden, remedy, dtype=torch.long)
    if chunk_rows is not None and not is_count(chunk_rows):
        raise ValueError(f"chunk_rows must be an integer of at least 1, got {chunk_rows!r}; or None")


def check_tokens(labels: Tensor | None, vocab_size: int, ignore_index: int) -> None:
    """Raises ValueError where a label is no token; a GPU would have to be waited for."""
    if labels is None or labels.device.type != "cpu":
        return
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= vocab_size))]
    if len(wrong):
        raise ValueError(
            f"labels must be in [0, {vocab_size}) or {ignore_index}, got {wrong[0].item()}; "
            "leave positions out by the second"
        )


def product_dtype(x: Tensor) -> torch.dtype:
    """That of autocast where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if _autocast(kind) else x.dtype


def _autocast(kind: str) -> bool:
    return kind != "meta" and torch.is_autocast_enabled(kind)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
