import json
import math
import subprocess
import sys

import pytest

from llmcourse.decoding import SamplingParams
from llmcourse.serving.request import PENDING, Request, RequestState


def test_a_request_keeps_what_was_asked_for():
    request = Request("a", [1, 2], max_tokens=3, stop_token_ids=[0], params=SamplingParams(top_k=2))
    assert request.prompt == (1, 2) and request.stop_token_ids == {0}
    assert request.max_length == 4  # the keys of the last token are never needed
    with pytest.raises(AttributeError):
        request.prompt = (3,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"id": ""}, "id must be a text that is not empty, got ''"),
        ({"prompt": ()}, "prompt must be at least one token, got none"),
        ({"prompt": (1, -1)}, "prompt must hold integers of at least 0, got -1"),
        ({"prompt": (1, True)}, "prompt must hold integers of at least 0, got True"),
        ({"stop_token_ids": (-2,)}, "stop_token_ids must hold integers of at least 0, got -2"),
        ({"max_tokens": 0}, "max_tokens must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"priority": -1}, "priority must be an integer of at least 0, got -1; use 0 for the most urgent"),
        ({"arrival_s": -1.0}, "arrival_s must be at least 0 and finite"),
        ({"arrival_s": math.nan}, "arrival_s must be at least 0 and finite, got nan"),
        ({"arrival_s": math.inf}, "arrival_s must be at least 0 and finite, got inf"),
    ],
)
def test_what_cannot_be_served_is_refused_when_made(wrong, message):
    with pytest.raises(ValueError, match=message):
        Request(**({"id": "a", "prompt": (1,)} | wrong))


WITHOUT_TYPE_CHECKS = """
import json, sys
from llmcourse.serving.request import Request
for name, value in json.load(sys.stdin):
    try:
        print(Request(**({"id": "a", "prompt": (1,)} | {name: value})))
    except ValueError as error:
        print(error)
"""
OTHER_KINDS = {
    ("id", 3): "id must be a text that is not empty, got 3",
    ("prompt", "words"): "prompt must be token ids, got 'words'; encode the text with a tokenizer",
    ("prompt", 7): "prompt must be token ids, got 7",
    ("prompt", (1.5,)): "prompt must hold integers of at least 0, got 1.5",
    ("stop_token_ids", None): "stop_token_ids must be token ids, got None",
    ("max_tokens", 2.0): "max_tokens must be an integer of at least 1, got 2.0",
    ("params", "greedy"): "params must be SamplingParams, got 'greedy'; leave it out",
    ("arrival_s", "now"): "arrival_s must be at least 0 and finite, got 'now'",
}


def test_what_is_of_another_kind_is_refused_in_the_form_of_the_house():
    """In a program of its own: here, types are already enforced before a value is looked at."""
    command = [sys.executable, "-c", WITHOUT_TYPE_CHECKS]
    given = json.dumps(list(OTHER_KINDS))
    lines = subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout
    for message, line in zip(OTHER_KINDS.values(), lines.splitlines(), strict=True):
        assert line.startswith(message)


def test_a_state_tells_pending_from_computed():
    state = RequestState(Request("a", (5, 6, 7), max_tokens=2), rank=(0, 0))
    assert (state.num_pending, state.num_generated, state.generated) == (3, 0, [])
    state.num_computed = 3
    state.tokens.append(9)
    assert (state.num_pending, state.num_generated, state.generated) == (1, 1, [9])


def test_tokens_on_their_way_are_no_part_of_the_answer():
    state = RequestState(Request("a", (5, 6, 7), max_tokens=4), rank=(0, 0))
    state.tokens += [9, PENDING, PENDING]
    assert (state.num_known, state.num_generated, state.generated) == (4, 1, [9])
