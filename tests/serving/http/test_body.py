"""What a body may hold, and that everything else is refused by name."""

import json

import pytest

from llmcourse.serving.http.body import parse
from llmcourse.serving.http.errors import ApiError
from llmcourse.serving.http.fields import FIELDS

LEAST = {"model": "tiny", "prompt": "Once"}


def parsed(**given):
    return parse(json.dumps(LEAST | given).encode())


def refused(data: bytes) -> ApiError:
    with pytest.raises(ApiError) as error:
        parse(data)
    assert error.value.status == 400
    return error.value


def test_defaults_are_those_of_openai():
    body = parsed()
    assert (body.max_tokens, body.temperature, body.top_p, body.n) == (16, 1.0, 1.0, 1)
    assert (body.presence_penalty, body.frequency_penalty, body.seed) == (0, 0, None)
    assert (body.stream, body.include_usage, body.echo, body.stop) == (False, False, False, ())
    assert (body.top_k, body.priority) == (0, 0)


def test_null_is_the_default():
    nothing = {name: None for name in FIELDS if name not in LEAST}
    assert parsed(**nothing) == parsed()


def test_every_value_reaches_the_parameters():
    given = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "presence_penalty": -1, "frequency_penalty": 2}
    params = parsed(**given).params(vocab_size=300)
    assert {name: getattr(params, name) for name in given} == given
    assert params.penalty_scope == "generated"
    assert parsed(top_k=10**30).params(vocab_size=300).top_k == 300
    body = parsed(stream=True, stream_options={"include_usage": True}, stop="x", user="ann", seed=2**63 - 1)
    assert body.include_usage and body.stop == ("x",) and body.seed == 2**63 - 1


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "model": [7, [], "\ud800"],
        "prompt": [7, {"text": "Once"}, True],
        "max_tokens": [0, -1, 1.0, "16", True, float("inf"), float("nan")],
        "temperature": [-0.1, 2.1, 0.001, "1", True, float("nan")],
        "top_p": [0, 1.3, -1, "1", float("nan"), []],
        "top_k": [-1, 0.5, "5", False],
        "n": [0, 129, "2", 1.5],
        "stream": [1, "true", 0],
        "stream_options": [True, {"include_usage": 1}, {"usage": True}, [], {"include_usage": True}],
        "stop": ["", ["a", ""], list("abcde"), 7, ["\ud800"], "x" * 257, [None]],
        "seed": [-1, 2**63, 1.0, "7"],
        "presence_penalty": [-2.1, 2.1, "0", float("nan")],
        "frequency_penalty": [-2.1, 2.1, "0", True],
        "echo": [1, "yes"],
        "priority": [-1, 1001, 0.5, "high"],
        "speculation": [
            "lookup",
            4,
            True,
            [],
            {},
            {"draft_length": 4},
            {"kind": 7},
            {"kind": None},
            {"kind": "lookup", "length": 4},
            *({"kind": "lookup", "draft_length": length} for length in (0, -1, 33, 2.0, "4", True, None)),
        ],
        "user": [7, []],
        "logprobs": [0, 5, True],
        "best_of": [1, 3],
        "suffix": ["!"],
        "logit_bias": [{"50256": -100}],
    }.items(),
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_bad_value_is_refused_by_name(name, values):
    for value in values:
        error = refused(json.dumps(LEAST | {name: value}).encode())
        assert error.param == name and error.kind == "invalid_request_error"
        assert error.message.startswith(f"{name} must be ") and "; " in error.message
        json.loads(error.content())


def test_every_argument_is_tried_above():
    (mark,) = (m for m in test_a_bad_value_is_refused_by_name.pytestmark if m.name == "parametrize")
    assert {name for name, _ in mark.args[1]} == set(FIELDS)


def test_a_large_value_is_not_repeated():
    error = refused(json.dumps(LEAST | {"stop": ["x" * 100_000] * 5}).encode())
    assert len(error.message) < 500
    assert len(refused(json.dumps(LEAST | {"y" * 100_000: 1}).encode()).content()) < 1000


@pytest.mark.parametrize("name", ["model", "prompt"])
def test_what_is_needed_is_asked_for(name):
    for given in ({name: None}, {}):
        body = {key: value for key, value in LEAST.items() if key != name} | given
        assert refused(json.dumps(body).encode()).param == name


def test_unknown_arguments_are_refused():
    error = refused(json.dumps(LEAST | {"min_p": 0.1}).encode())
    assert error.param == "min_p" and error.code == "unknown_parameter" and "top_p" in error.message


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b"[1]", b"7", b'"x"', b"null", b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut", "bytes", "list", "number", "text", "null", "deep", "digits"],
)
def test_what_is_no_json_object_is_refused(data):
    error = refused(data)
    assert error.param is None and error.message.startswith("the body must be ")


def test_halves_of_characters_do_not_break_the_answer():
    error = refused(b'{"\\ud800": 1}')
    assert json.loads(error.content())["error"]["param"] == "\ud800"
