"""What each argument of /v1/completions may be: OpenAI's, `top_k`, `priority` and `speculation`.

`null` means the default everywhere. What OpenAI's server does and this one does not is refused by
name, not ignored; `user` alone is read and has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Holds = Callable[[object], bool]

MAX_STOPS, MAX_STOP_LENGTH = 4, 256
MIN_TEMPERATURE = 0.01  # logits divided by less may overflow
SEEDS = 2**63
DRAFT_LENGTH, MAX_DRAFT_LENGTH = 4, 32


@dataclass(frozen=True)
class Field:
    """One argument.

    Attributes:
        holds: whether a value is allowed.
        allowed: the same in words.
        remedy: what to do instead.
        default: where it is not given, or null.
    """

    holds: Holds
    allowed: str
    remedy: str
    default: object = None


def is_text(value: object) -> bool:
    """Whether it is a string without halves of characters, which JSON can spell and UTF-8 cannot."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def is_integer(value: object) -> bool:
    """Whether it is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def integer(least: int, most: float | int = math.inf) -> Holds:
    return lambda value: is_integer(value) and least <= value <= most


def number(holds: Callable[[float | int], bool]) -> Holds:
    return lambda value: (is_integer(value) or isinstance(value, float)) and holds(value)


def is_stop(value: object) -> bool:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        return False
    return all(is_text(stop) and 1 <= len(stop) <= MAX_STOP_LENGTH for stop in stops)


def is_stream_options(value: object) -> bool:
    return isinstance(value, dict) and all(
        name == "include_usage" and isinstance(option, bool) for name, option in value.items()
    )


def is_speculation(value: object) -> bool:
    """Whether it names a kind, and perhaps a length; which kinds there are, a model knows."""
    if not isinstance(value, dict) or not {"kind"} <= value.keys() <= {"kind", "draft_length"}:
        return False
    length = value.get("draft_length", DRAFT_LENGTH)
    return is_text(value["kind"]) and integer(1, MAX_DRAFT_LENGTH)(length)


def _is_temperature(value: float | int) -> bool:
    return value == 0 or MIN_TEMPERATURE <= value <= 2


def _switch() -> Field:
    return Field(lambda value: isinstance(value, bool), "true or false", "leave it out for false", False)


def _penalty() -> Field:
    return Field(number(lambda a: -2 <= a <= 2), "in [-2, 2]", "use 0 to disable it", 0.0)


def _refused(why: str, harmless: object = None) -> Field:
    return Field(lambda value: value == harmless, "null", f"leave it out: {why}")


FIELDS = {
    "model": Field(is_text, "the name of a model", "GET /v1/models tells which are served"),
    "prompt": Field(
        lambda value: isinstance(value, str | list),
        "a text, a list of texts, a list of token ids, or a list of such lists",
        'begin with "<|endoftext|>"',
    ),
    "max_tokens": Field(integer(1), "an integer of at least 1", "leave it out for 16", 16),
    "temperature": Field(
        number(_is_temperature), f"0 or in [{MIN_TEMPERATURE}, 2]", "use 0 for greedy search", 1.0
    ),
    "top_p": Field(number(lambda p: 0 < p <= 1), "in (0, 1]", "use 1 to disable it", 1.0),
    "top_k": Field(integer(0), "an integer of at least 0", "use 0 to disable it", 0),
    "n": Field(integer(1, 128), "an integer in [1, 128]", "leave it out for one answer", 1),
    "stream": _switch(),
    "stream_options": Field(
        is_stream_options, 'an object with "include_usage", true or false', "leave it out", {}
    ),
    "stop": Field(
        is_stop,
        f"a text or at most {MAX_STOPS} of 1 to {MAX_STOP_LENGTH} characters",
        "leave it out to stop at nothing",
        [],
    ),
    "seed": Field(integer(0, SEEDS - 1), "an integer in [0, 2**63)", "leave it out for a random one"),
    "presence_penalty": _penalty(),
    "frequency_penalty": _penalty(),
    "echo": _switch(),
    "priority": Field(integer(0, 1000), "an integer in [0, 1000]", "use 0 for the most urgent", 0),
    "speculation": Field(
        is_speculation,
        f'an object with "kind" and, if not {DRAFT_LENGTH}, "draft_length", in [1, {MAX_DRAFT_LENGTH}]',
        'use {"kind": "lookup"}, or leave it out',
    ),
    "user": Field(is_text, "a text", "it has no effect here"),
    "logprobs": _refused("a step gives its tokens alone"),
    "best_of": _refused("answers are not compared; ask for several with n"),
    "suffix": _refused("the models continue texts, they do not fill gaps", ""),
    "logit_bias": _refused("logits are changed by penalties alone", {}),
}
