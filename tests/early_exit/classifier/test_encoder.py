"""The encoder: everybody sees everybody but padding; what is stored; rows of tokens."""

import json

import pytest
import torch
from safetensors.torch import load_file

from llmcourse import pretrained
from llmcourse.attention import attention_reference
from llmcourse.early_exit.classifier.encoder import (
    MASK,
    PAD,
    SEPARATOR,
    START,
    Encoder,
    attend_everywhere,
    encoder_shape,
    in_both,
    in_second,
    load_encoder,
    row,
    save_encoder,
)
from tests.early_exit.classifier.tiny import SIZE, VOCAB, tiny_encoder, tiny_rows


def test_attention_is_the_definition_with_a_mask():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 8, generator=generator) for heads in (4, 2, 2))
    mask = torch.rand(2, 5, 5, generator=generator) < 0.7
    mask[..., 0] = True
    torch.testing.assert_close(attend_everywhere(q, k, v, mask), attention_reference(q, k, v, mask))


def test_the_first_token_sees_the_last():
    encoder, rows = tiny_encoder(), tiny_rows(1)
    changed = rows.clone()
    changed[0, -1] = 5 if rows[0, -1] != 5 else 6
    assert (encoder(rows)[:, 0] - encoder(changed)[:, 0]).abs().max() > 1e-5


def test_padding_changes_nothing():
    encoder, rows = tiny_encoder(scale=5), tiny_rows(4)
    whole = encoder(rows)
    for index, tokens in enumerate(rows):
        alone = encoder(tokens[tokens != PAD][None])[0]
        torch.testing.assert_close(whole[index, : len(alone)], alone, atol=1e-5, rtol=1e-4)


def test_order_matters():
    encoder, rows = tiny_encoder(scale=5), tiny_rows(1)
    turned = rows.clone()
    turned[0, 1:] = rows[0, 1:].flip(0)
    assert (encoder(rows)[:, 0] - encoder(turned)[:, 0]).abs().max() > 1e-4


def test_special_tokens_have_vectors_of_their_own_and_others_the_tables():
    encoder = tiny_encoder()
    encoder(torch.tensor([[START, MASK, SEPARATOR, 9]])).sum().backward()
    assert encoder.embed_tokens.weight.grad is None
    assert (encoder.special.weight.grad.abs().sum(1) > 0).tolist() == [True, False, True, True]
    x, _ = encoder.start(torch.tensor([[9]]))
    torch.testing.assert_close(x, encoder.input_norm(encoder.embed_tokens.weight[9][None, None]))


class TestVectorsOfPairs:
    ROWS = torch.tensor([[START, 9, 7, SEPARATOR, 9, 8], [START, 9, 8, 9, 9, PAD]])

    @pytest.mark.parametrize(("name", "places"), [("second", [(0, 4), (0, 5)]), ("shared", [(0, 1), (0, 4)])])
    def test_which_tokens_get_them(self, name, places):
        """Those behind the separator; those whose like is on its other side. A text alone gets none."""
        encoder = tiny_encoder()
        with_it, _ = encoder.start(self.ROWS)
        vector = getattr(encoder, name).detach().clone()
        assert vector.abs().min() > 0
        getattr(encoder, name).data.zero_()
        without, _ = encoder.start(self.ROWS)
        expected = torch.zeros(2, 6, SIZE)
        for place in places:
            expected[place] = vector
        torch.testing.assert_close(with_it - without, expected)

    def test_special_tokens_are_not_shared(self):
        rows = torch.tensor([[START, MASK, 7, SEPARATOR, MASK, START]])
        assert not in_both(rows, in_second(rows)).any()


def test_the_ids_are_the_familys():
    tokenizer = pretrained.load("draft").tokenizer
    names = ("<|endoftext|>", "<|pad|>", "<|mask|>", "<|sep|>")
    assert [tokenizer.token_id(name) for name in names] == [START, PAD, MASK, SEPARATOR]


def test_what_ships_is_small():
    with torch.device("meta"):
        config = encoder_shape(12_288)
        encoder = Encoder(config, torch.empty(12_288, 128))
    stored = sum(p.numel() for n, p in encoder.named_parameters() if n != "embed_tokens.weight")
    assert config.num_layers == 12 and 2 * stored < 2.97e6


def test_a_file_brings_it_back(tmp_path):
    encoder = tiny_encoder()
    save_encoder(encoder, tmp_path / "encoder")
    assert "embed_tokens.weight" not in load_file(tmp_path / "encoder" / "model.safetensors")
    again = load_encoder(tmp_path / "encoder", encoder.embed_tokens.weight)
    for name, tensor in encoder.state_dict().items():
        stored = tensor if name == "embed_tokens.weight" else tensor.bfloat16().float()
        assert torch.equal(again.state_dict()[name], stored), name


class TestErrors:
    def test_a_table_of_another_shape(self):
        with pytest.raises(ValueError, match=r"table must be of shape \(60, 32\), got \(60, 16\)"):
            Encoder(encoder_shape(VOCAB, SIZE, 1), torch.zeros(VOCAB, 16))

    @pytest.mark.parametrize("shape", [(1, 0), (0, 3), (1, 513)])
    def test_rows_that_do_not_fit(self, shape):
        with pytest.raises(ValueError, match="tokens must be of shape"):
            tiny_encoder().start(torch.zeros(shape, dtype=torch.long))

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load_encoder(tmp_path, torch.zeros(VOCAB, SIZE))

    @pytest.mark.parametrize("damage", ["config", "weights", "another"])
    def test_damaged_files(self, tmp_path, damage):
        save_encoder(tiny_encoder(), tmp_path)
        if damage == "config":
            (tmp_path / "config.json").write_text("{", encoding="utf-8")
        elif damage == "weights":
            (tmp_path / "model.safetensors").write_bytes(b"no weights")
        else:
            config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) | {"num_layers": 9}
            (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(ValueError, match="must hold an encoder"):
            load_encoder(tmp_path, torch.zeros(VOCAB, SIZE))


class TestRows:
    def test_one_text_is_cut_at_its_end(self):
        assert row([[5, 6, 7]], 3) == [START, 5, 6]
        assert row([[5]], 8) == [START, 5]

    def test_a_pair_shares_the_room(self):
        first, second = list(range(10, 20)), list(range(30, 40))
        assert row([first, second], 8) == [START, 10, 11, 12, SEPARATOR, 30, 31, 32]
        assert row([first, second], 8, first_from_end=True) == [START, 17, 18, 19, SEPARATOR, 30, 31, 32]

    def test_what_one_leaves_the_other_takes(self):
        assert row([[5], [6, 7, 8, 9, 10]], 7) == [START, 5, SEPARATOR, 6, 7, 8, 9]
        assert row([[6, 7, 8, 9, 10], [5]], 7, first_from_end=True) == [START, 7, 8, 9, 10, SEPARATOR, 5]

    @pytest.mark.parametrize(("texts", "length"), [([], 9), ([[5]] * 3, 9), ([[5], [6]], 3), ([[5]], 1)])
    def test_what_is_no_row(self, texts, length):
        with pytest.raises(ValueError, match=r"(texts|length) must be"):
            row(texts, length)
