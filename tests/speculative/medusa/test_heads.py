"""The heads, and what is stored of them: whose they are, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmcourse.pretrained import CheckpointError, fingerprint
from llmcourse.speculative.medusa import (
    HeadsConfig,
    MedusaHeads,
    embedded_heads,
    load_heads,
    save_heads,
)
from llmcourse.speculative.medusa.heads import check_fits
from tests.speculative.medusa.tiny import tiny_heads
from tests.speculative.tiny import tiny_decoder


@pytest.fixture(scope="module")
def model():
    return tiny_decoder()


@pytest.fixture
def folder(model, tmp_path):
    save_heads(tiny_heads(model), model, tmp_path / "heads")
    return tmp_path / "heads"


def change(folder, **entries) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | entries), encoding="utf-8")


def test_an_untrained_head_says_what_the_backbone_says(model):
    heads = MedusaHeads(HeadsConfig.for_model(model, 3, 2))
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    logits = heads.logits(model, model.hidden_states(tokens))
    assert logits.shape == (2, 3, 3, model.config.vocab_size)
    for head in range(3):
        torch.testing.assert_close(logits[:, :, head], model(tokens))


def test_a_head_is_its_blocks_one_after_the_other(model):
    heads, hidden = tiny_heads(model, 2, 2), torch.randn(5, 32)
    expected = hidden
    for block in heads.heads[1]:
        z = expected @ block.linear.weight.T + block.linear.bias
        expected = expected + z / (1 + torch.exp(-z))
    torch.testing.assert_close(heads(hidden)[:, 1], expected)
    assert heads(hidden, 1).shape == (5, 1, 32)


def test_heads_have_no_output_matrix(model):
    count = sum(weight.numel() for weight in tiny_heads(model, 3).parameters())
    assert count == 3 * (32 * 32 + 32)


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_shapes_out_of_range(number):
    for place in range(4):
        sizes = [2, 1, 32, 40]
        sizes[place] = number
        with pytest.raises((ValueError, TypeError), match=r"must be an integer of at least 1|HeadsConfig"):
            HeadsConfig(*sizes)


def test_heads_of_another_size_do_not_fit(model):
    with pytest.raises(
        ValueError, match="vocab_size of the heads must be the backbone's 40, got 41; use heads"
    ):
        check_fits(MedusaHeads(HeadsConfig(1, 1, 32, 41)), model)
    with pytest.raises(ValueError, match="hidden_size of the heads must be the backbone's 32, got 16"):
        check_fits(MedusaHeads(HeadsConfig(1, 1, 16, 40)), model)
    with pytest.raises(TypeError, match="heads must be a MedusaHeads, got Decoder"):
        check_fits(model, model)
    with pytest.raises(ValueError, match="hidden must be of 32 features, got 16"):
        tiny_heads(model)(torch.zeros(1, 16))


# ---- on disk


def test_what_was_stored_is_loaded(model, folder):
    ours, theirs = tiny_heads(model), load_heads(folder, model)
    assert theirs.config == ours.config and not theirs.training
    for name, weight in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], weight.bfloat16().float())


def test_the_hash_is_of_the_weights_not_of_their_format():
    model = tiny_decoder()
    model.load_state_dict({n: t.bfloat16().float() for n, t in model.state_dict().items()})
    found = fingerprint(model)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        assert fingerprint(model.to(dtype)) == found
    weight = model.model.layers[1].mlp.down_proj.weight
    weight.data = weight.data.t().contiguous().t()  # another layout
    assert fingerprint(model) == found
    weight[3, 4] += 0.5
    assert fingerprint(model) != found


def test_heads_of_another_backbone_are_refused(folder):
    message = (
        "must be those of this backbone, whose weights have the hash .*, got heads of .*; load the model"
    )
    with pytest.raises(CheckpointError, match=message):
        load_heads(folder, tiny_decoder(seed=1))
    with pytest.raises(
        CheckpointError, match=r"vocab_size of the heads in .* must be the backbone's 50, got 40"
    ):
        load_heads(folder, tiny_decoder(vocab_size=50))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"num_heads": 0}, r"num_heads must be an integer of at least 1, got 0; .* \(in "),
        ({"num_heads": None}, "num_heads must be an integer of at least 1, got None"),
        ({"num_heads": "3"}, "num_heads must be an integer of at least 1, got '3'"),
        ({"num_heads": 10**9}, r"num_heads × num_blocks in .* must be at most 2048"),
        ({"num_heads": 4}, "lacks tensor heads.3.0.linear.bias; is its config.json another one's"),
        ({"num_heads": 2}, "has the unexpected tensor heads.2.0.linear.bias"),
        ({"num_blocks": 2}, "lacks tensor heads.0.1"),
        ({"format": "exits"}, "must be a JSON object of format 'medusa'"),
        ({"backbone": None}, "backbone in .* must be a hash, got None"),
    ],
)
def test_wrong_entries_are_refused(model, folder, entries, message):
    change(folder, **entries)
    with pytest.raises(CheckpointError, match=message):
        load_heads(folder, model)


def test_damaged_files_are_refused(model, folder):
    whole = (folder / "heads.safetensors").read_bytes()
    tensors = {name: t.clone() for name, t in load_file(folder / "heads.safetensors").items()}
    name = "heads.0.0.linear.weight"
    for content, message in (
        (whole[:-100], "is damaged or truncated"),
        (b"", "is damaged or truncated"),
        ({name: tensors[name][:5].contiguous()}, r"has shape \(5, 32\), expected \(32, 32\)"),
        ({name: tensors[name].int()}, "is stored as I32, expected one of F32"),
        ({name: tensors[name] * torch.nan}, "is not finite; train the heads again"),
    ):
        if isinstance(content, bytes):
            (folder / "heads.safetensors").write_bytes(content)
        else:
            save_file(tensors | content, folder / "heads.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_heads(folder, model)
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        load_heads(folder, model)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        load_heads(folder, model)
    with pytest.raises(FileNotFoundError, match="no Medusa heads for 'nobody' in the package"):
        embedded_heads("nobody")
