"""What rounding a cache does: nothing where there is nothing to round, and more with fewer bits."""

import pytest
import torch

from llmcourse import pretrained
from llmcourse.quantization import cache_error
from llmcourse.quantization.cache_error import cache_errors, relative_error


@pytest.fixture(scope="module")
def read():
    model, tokenizer = pretrained.load("draft")
    text = (
        "def area(width, height):\n    return width * height\n\n\nIt was the best of times, it was the worst"
    )
    return model, torch.tensor([tokenizer.encode_prompt(text)])


def test_relative_error_by_hand():
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == 1 / 25
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0


def test_fewer_bits_lose_more(read):
    found = {bits: cache_errors(*read, bits) for bits in (8, 4, 2)}
    for name in ("keys", "values", "attention", "from_keys", "from_values"):
        for errors in zip(*(getattr(one, name) for one in found.values()), strict=True):
            assert 0 < 20 * errors[0] < errors[1] and 5 * errors[1] < errors[2], name
        assert len(getattr(found[8], name)) == read[0].config.num_layers
    assert 0 < found[8].kl_divergence < found[4].kl_divergence / 20 < found[2].kl_divergence / 100
    assert found[8].agreement >= 0.95 and found[8].agreement > found[2].agreement


def test_keys_matter_more_than_values(read):
    found = cache_errors(*read, 4)
    assert sum(found.from_keys) > sum(found.from_values)


def test_zero_points_help(read):
    with_them, without = (cache_errors(*read, 4, symmetric=symmetric) for symmetric in (False, True))
    for name in ("keys", "values", "from_values"):
        assert sum(getattr(with_them, name)) < 0.85 * sum(getattr(without, name)), name


def test_a_cache_that_rounds_nothing_changes_nothing(read, monkeypatch):
    monkeypatch.setattr(cache_error, "_rounded", lambda k, v, *_: (k, v))
    found = cache_errors(*read, 8)
    assert set(found.keys + found.values + found.attention + found.from_keys + found.from_values) == {0.0}
    assert found.kl_divergence > 0  # the pass with a cache is another one


def test_bits_that_do_not_exist_are_refused(read):
    with pytest.raises(ValueError, match=r"bits must be one of .*, got 9"):
        cache_errors(*read, 9)
