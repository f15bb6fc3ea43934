"""The batch's texts: ragged rows, growth, scopes and counts."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.decoding import History

PROMPTS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), min_size=1, max_size=5)


def test_prompts_are_padded_on_the_right_and_room_is_kept():
    history = History.from_prompts([[1, 2, 3], [4]], room=2)
    assert history.tokens.shape == (2, 5)
    assert history.lengths.tolist() == history.prompt_lengths.tolist() == [3, 1]
    assert [history.row(0), history.row(1)] == [[1, 2, 3], [4]]


def test_append_skips_inactive_rows_and_grows_past_the_room():
    history = History.from_prompts([[1, 2], [3]])
    for token in range(20):
        history.append(torch.tensor([token, token]), torch.tensor([True, token % 2 == 0]))
    assert history.row(0) == [1, 2, *range(20)]
    assert history.row(1) == [3, *range(0, 20, 2)]
    assert history.prompt_lengths.tolist() == [2, 1]


def test_mask_tells_prompt_from_generated():
    history = History.from_prompts([[1, 2], [3]], room=1)
    history.append(torch.tensor([5, 6]))
    assert history.mask().tolist() == [[True, True, True], [True, True, False]]
    assert history.mask("generated").tolist() == [[False, False, True], [False, True, False]]


@given(prompts=PROMPTS, new=st.integers(0, 6), seed=st.integers(0, 999))
@settings(max_examples=100, deadline=None)
def test_counts_are_those_of_a_counter(prompts, new, seed):
    history = History.from_prompts(prompts)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(new):
        active = torch.rand(len(prompts), generator=generator) < 0.7
        history.append(torch.randint(7, (len(prompts),), generator=generator), active)
    history.tokens[~history.mask()] = 3  # padding may hold any value
    everything, generated = history.counts(7), history.counts(7, "generated")
    for row, prompt in enumerate(prompts):
        text = history.row(row)
        assert text[: len(prompt)] == prompt
        assert everything[row].tolist() == [Counter(text)[token] for token in range(7)]
        assert generated[row].tolist() == [Counter(text[len(prompt) :])[token] for token in range(7)]


def test_select_copies_rows_and_leaves_the_source_alone():
    history = History.from_prompts([[1, 2], [3]], room=1)
    chosen = history.select(torch.tensor([1, 1, 0]))
    chosen.append(torch.tensor([7, 8, 9]))
    assert [chosen.row(i) for i in range(3)] == [[3, 7], [3, 8], [1, 2, 9]]
    assert [history.row(i) for i in range(2)] == [[1, 2], [3]]
    assert history.select([0]).prompt_lengths.tolist() == [2]


def test_extend_writes_unequal_numbers_of_tokens():
    history = History.from_prompts([[1], [2, 3], [4]], room=3)
    history.extend(torch.tensor([[5, 6, 7], [8, 0, 0], [9, 9, 9]]), [3, 1, 0])
    assert [history.row(row) for row in range(3)] == [[1, 5, 6, 7], [2, 3, 8], [4]]
