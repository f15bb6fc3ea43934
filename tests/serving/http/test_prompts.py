import asyncio

import pytest

from llmcourse.serving.http.errors import ApiError
from llmcourse.serving.http.prompts import check_length, encode_prompts, split_prompts
from tests.serving.http.fakes import model_of


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Once", ["Once"]),
        (["Once", "明月"], ["Once", "明月"]),
        ([5, 6], [[5, 6]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
        ("", [""]),
    ],
)
def test_the_four_forms(prompt, prompts):
    assert split_prompts(prompt) == prompts


@pytest.mark.parametrize(
    "prompt",
    [
        *([], [[]], [[5], []], [[[5]]]),
        *(["a", 5], [5, "a"], [5, [6]], [[5], 6]),
        *([True], [[True]], [1.0], [None]),
        *("\ud800", ["a", "\ud800"]),
    ],
    ids=repr,
)
def test_other_forms_are_refused(prompt):
    with pytest.raises(ApiError, match="prompt must be a text, a list of texts") as error:
        split_prompts(prompt)
    assert error.value.param == "prompt" and error.value.status == 400


def test_texts_are_encoded_and_ids_stay(tokenizer):
    model = model_of(tokenizer)
    assert asyncio.run(encode_prompts(["Once"], model)) == [tokenizer.encode_prompt("Once")]
    assert asyncio.run(encode_prompts([[0, 299]], model)) == [[0, 299]]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[5], [5, 300]], r"prompt must be token ids in \[0, 299\], got 300"),
        ([[-1, 5]], r"token ids in \[0, 299\], got -1"),
        ([[10**30]], "got 1000"),
        (["Once", ""], "prompt must be a text of at least one token"),
    ],
)
def test_what_is_no_text_for_this_model_is_refused(tokenizer, prompts, message):
    with pytest.raises(ApiError, match=message) as error:
        asyncio.run(encode_prompts(prompts, model_of(tokenizer)))
    assert error.value.param == "prompt"


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "param"), [([64], 1, "prompt"), ([9, 60], 5, "max_tokens")]
)
def test_what_exceeds_the_context_is_refused(tokenizer, lengths, max_tokens, param):
    prompts = [[5] * length for length in lengths]
    with pytest.raises(ApiError, match=f"{param} must fit into the context of 64 tokens") as error:
        check_length(prompts, max_tokens, model_of(tokenizer))
    assert error.value.param == param and error.value.code == "context_length_exceeded"


def test_what_just_fits_the_context_is_taken(tokenizer):
    check_length([[5] * 60], 4, model_of(tokenizer))


def test_a_number_of_thousands_of_digits_is_not_repeated(tokenizer):
    with pytest.raises(ApiError, match="max_tokens must fit into the context") as error:
        check_length([[1]], 10**4000, model_of(tokenizer))
    assert len(error.value.message) < 300
