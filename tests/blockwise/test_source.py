"""Passes with a cache against passes without, block after block, and what they leave in the cache."""

import pytest
import torch

from llmcourse.blockwise import BlockSource, CachedBlocks, UncachedBlocks
from llmcourse.decoding.source import CachedLogits
from tests.blockwise.tiny import PROMPTS, VOCAB, tiny_block_decoder


@pytest.fixture(scope="module")
def model():
    return tiny_block_decoder()


def started(kind, model, prompts=PROMPTS):
    source = kind(model)
    assert isinstance(source, BlockSource)
    source.start(prompts, max(map(len, prompts)) + 20)
    return source


def known(model, size: int, *places: int, seed: int = 0) -> torch.Tensor:
    """A block for each prompt, of which some places are known."""
    block = model.mask_ids(size).repeat(len(PROMPTS), 1)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, block.shape, generator=generator)
    for place in places:
        block[:, place] = tokens[:, place]
    return block


def test_both_sources_say_the_same_in_every_pass(model):
    fast, slow = started(CachedBlocks, model), started(UncachedBlocks, model)
    for number, size in enumerate((4, 1, 1, 5, 3)):
        for places in ((), (0,), (0, size - 1), tuple(range(size))):
            block = known(model, size, *places, seed=number)
            torch.testing.assert_close(fast.read(block), slow.read(block), rtol=1e-9, atol=1e-9)
        fast.finish(block)
        slow.finish(block)


def test_the_first_place_is_the_backbones_and_sees_no_block(model):
    source, plain = started(CachedBlocks, model), CachedLogits(model.backbone)
    expected = plain.start(PROMPTS, 12)
    for places in ((), (1, 3)):
        torch.testing.assert_close(source.read(known(model, 4, *places))[:, 0], expected)


def test_what_is_known_of_a_block_changes_all_other_places(model):
    source = started(CachedBlocks, model)
    open_, last = source.read(known(model, 4)), source.read(known(model, 4, 3))
    assert not torch.isclose(open_[:, 1:], last[:, 1:]).all(-1).any()
    assert torch.equal(open_[:, 0], last[:, 0])


def test_rows_do_not_depend_on_each_other(model):
    together, block = started(CachedBlocks, model).read(known(model, 4)), known(model, 4)
    for row, prompt in enumerate(PROMPTS):
        alone = started(CachedBlocks, model, [prompt]).read(block[:1])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-9, atol=1e-9)


def test_the_cache_holds_finished_text_alone(model):
    source, plain = started(CachedBlocks, model), CachedLogits(model.backbone)
    source.read(known(model, 4))
    assert source.cache.lengths.tolist() == [len(prompt) for prompt in PROMPTS]
    block = known(model, 4, 0, 1, 2, 3)
    source.finish(block)
    source.read(known(model, 2))
    texts = [prompt + tokens for prompt, tokens in zip(PROMPTS, block.tolist(), strict=True)]
    plain.start(texts, 20)
    assert source.cache.lengths.tolist() == [len(text) for text in texts]
    for row, text in enumerate(texts):
        ours, theirs = (cache.keys[:, row, :, : len(text)] for cache in (source.cache, plain.cache))
        torch.testing.assert_close(ours, theirs)


def test_a_block_of_one_is_one_plain_pass_of_the_backbone(model, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("adapters were asked")

    monkeypatch.setattr(model.adapted, "hidden_states", refuse)
    source, plain = started(CachedBlocks, model), CachedLogits(model.backbone)
    assert torch.equal(source.read(known(model, 1))[:, 0], plain.start(PROMPTS, 12))
    token = torch.tensor([3, 4, 5])
    source.finish(token[:, None])
    assert torch.equal(source.read(known(model, 1))[:, 0], plain.step(token))
