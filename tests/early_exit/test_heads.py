"""Exit heads: untrained they are the model's own head, folded they are the same function."""

import pytest
import torch

from llmcourse.early_exit import ExitHeads, check_exits
from llmcourse.model import Decoder
from llmcourse.speculative.early_layers import first_layers
from tests.early_exit.tiny import PROMPTS, random_heads
from tests.packed_model import packed_model
from tests.speculative.tiny import tiny_decoder

TEXT = torch.tensor([[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]])


@pytest.fixture(scope="module")
def model():
    return tiny_decoder(num_layers=4)


def test_untrained_heads_read_a_layer_as_the_last_one_is_read(model):
    every = list(ExitHeads(model).logits(TEXT))
    assert len(every) == 4 and torch.equal(every[-1], model(TEXT))
    for layer, logits in enumerate(every[:3], start=1):
        assert torch.equal(logits, first_layers(model, layer)(TEXT))


def test_a_head_is_its_equation(model):
    heads = random_heads(model)
    for layer, x in list(heads.states(TEXT))[:3]:
        head = heads.head(layer)
        h = x / (x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt() * head.norm.weight
        wanted = (h + h @ head.residual.weight.T) @ model.lm_head.weight.T
        torch.testing.assert_close(heads(layer, x), wanted)
        assert not torch.allclose(wanted, model.lm_head(model.model.norm(x)), atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_folded_exit_is_a_decoder_with_the_same_logits(model, dtype):
    heads = random_heads(tiny_decoder(num_layers=4).to(dtype))
    for layer, logits in zip(heads.layers, heads.logits(TEXT), strict=False):
        early = heads.folded(layer)
        assert isinstance(early, Decoder) and not early.config.tie_word_embeddings
        torch.testing.assert_close(early(TEXT), logits)
        assert early.model.layers[0] is heads.backbone.model.layers[0]


def test_an_exit_folds_into_a_head_in_few_bits_too():
    heads = random_heads(packed_model(tiny_decoder(num_layers=4)))
    early = heads.folded(2)
    assert type(early.lm_head.weight) is torch.nn.Parameter
    torch.testing.assert_close(early(TEXT), list(heads.logits(TEXT))[1])


def test_the_backbone_is_no_part_of_its_heads(model):
    heads = ExitHeads(model)
    assert sum(p.numel() for p in heads.parameters()) == 3 * (32 * 32 + 32)
    assert all(name.startswith("heads.") for name in heads.state_dict())
    heads.train()
    assert not model.training and heads.backbone is model
    assert all(p.requires_grad for p in heads.parameters()) and not any(
        p.requires_grad for p in model.parameters()
    )


@pytest.mark.parametrize("layer", [0, 4, 5, -1, True])
def test_exits_that_are_not_there_are_refused(model, layer):
    heads = ExitHeads(model)
    for call in (
        lambda: heads.head(layer),
        lambda: check_exits(heads, [1, layer]),
        lambda: heads.folded(layer),
    ):
        with pytest.raises(ValueError, match="an exit must be"):
            call()


def test_exits_are_given_in_order(model):
    heads = ExitHeads(model)
    assert check_exits(heads, None) == (1, 2, 3) and check_exits(heads, [3, 1]) == (1, 3)


@pytest.mark.parametrize(
    ("exits", "message"),
    [([], "exits must be at least one, got none"), ([2, 2], "exits must be named once each")],
)
def test_lists_of_exits_that_are_none_are_refused(model, exits, message):
    with pytest.raises(ValueError, match=message):
        check_exits(ExitHeads(model), exits)


def test_a_model_of_one_layer_is_refused():
    with pytest.raises(ValueError, match="backbone must be of at least two layers, got 1"):
        ExitHeads(tiny_decoder(num_layers=1))


def test_norms_and_heads_of_another_shape_are_refused(model):
    other = tiny_decoder(vocab_size=7, num_layers=2)
    with pytest.raises(ValueError, match=r"lm_head must be of shape \(40, 32\), got \(7, 32\)"):
        first_layers(model, 1, lm_head=other.lm_head)


def test_tokens_are_checked_as_the_model_checks_them(model):
    with pytest.raises(ValueError, match="token ids must be in"):
        list(ExitHeads(model).logits(torch.tensor([[41]])))
    assert len(PROMPTS) == 4
