"""Draft and target must mean the same by a token: both sides are compared before anything is read."""

from __future__ import annotations

from llmcourse.tokenizer import Tokenizer

REMEDY = "draft and target must share one tokenizer"


def check_sizes(target: int, drafter: int) -> None:
    """Raises ValueError unless both vocabularies are as large."""
    if drafter != target:
        raise ValueError(
            f"drafter must be over the {target} tokens of the target, got {drafter}, "
            f"{abs(drafter - target)} {'more' if drafter > target else 'fewer'}; {REMEDY}"
        )


def check_tokens(target: Tokenizer, drafter: Tokenizer) -> None:
    """Raises ValueError, naming the first token that differs, unless every id stands for the same."""
    ours, theirs = target.vocabulary(), drafter.vocabulary()
    if ours == theirs:
        return
    differing = {token_id for _, token_id in ours.items() ^ theirs.items()}
    first = min(differing)
    wanted, found = ({number: piece for piece, number in side.items()}.get(first) for side in (ours, theirs))
    raise ValueError(
        f"drafter must have the target's tokens, got {found!r} for token {first}, which is {wanted!r} for "
        f"the target, and {len(differing)} that differ in all; {REMEDY}"
    )
