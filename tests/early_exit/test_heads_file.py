"""Heads come back as they were saved, for the model that they were trained on and for no other."""

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmcourse.early_exit import load_heads, save_heads
from llmcourse.early_exit.heads_file import WEIGHTS, read_heads_config
from llmcourse.pretrained import CheckpointError
from tests.early_exit.tiny import random_heads
from tests.speculative.tiny import near, tiny_decoder


@pytest.fixture(scope="module")
def model():
    return tiny_decoder(num_layers=4).to(torch.bfloat16).float()  # as stored weights are


@pytest.fixture
def folder(model, tmp_path):
    save_heads(random_heads(model), tmp_path / "heads", {"objective": "kl"})
    return tmp_path / "heads"


def changed(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | changes), encoding="utf-8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_heads_come_back(model, folder, dtype):
    backbone = tiny_decoder(num_layers=4).to(torch.bfloat16).to(dtype)
    heads, saved = load_heads(folder, backbone), random_heads(model)
    assert not heads.training and not any(p.requires_grad for p in heads.parameters())
    for name, tensor in saved.state_dict().items():
        assert torch.equal(heads.state_dict()[name], tensor.to(torch.bfloat16).to(dtype))
    assert read_heads_config(folder)["notes"] == {"objective": "kl"}


def test_saving_again_replaces(model, folder):
    save_heads(random_heads(model, seed=6), folder)
    assert sorted(os.listdir(folder)) == ["config.json", WEIGHTS]
    head = load_heads(folder, model).head(2).residual.weight
    assert torch.equal(head, random_heads(model, seed=6).head(2).residual.weight.to(torch.bfloat16).float())


def test_heads_of_another_backbone_are_refused(model, folder):
    with pytest.raises(CheckpointError, match=r"backbone of the heads in .* must be this model's, "):
        load_heads(folder, near(model))


@pytest.mark.parametrize("count", [3, 5])
def test_heads_of_other_layers_are_refused(folder, count):
    with pytest.raises(CheckpointError, match=r"layers of the heads in .* got \[1, 2, 3\]"):
        load_heads(folder, tiny_decoder(num_layers=count))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [1, 2]}, r"layers of the heads .* must be this model's, \[1, 2, 3\], got \[1, 2\]"),
        ({"layers": None}, "layers in .* is missing or damaged"),
        ({"hidden_size": 64}, "hidden_size of the heads .* must be this model's, 32, got 64"),
        ({"backbone": "0" * 64}, "backbone of the heads in .*; load them for the weights that they were"),
        ({"backbone": 3}, "backbone in .* is missing or damaged"),
        ({"weights": "0" * 64}, "heads.safetensors is damaged: its SHA-256 is"),
        ({"kind": "medusa heads"}, "does not describe exit heads"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(model, folder, changes, message):
    changed(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_heads(folder, model)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff\xfe"])
def test_damaged_configurations_are_refused(model, folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not valid JSON|does not describe"):
        load_heads(folder, model)


def test_damaged_weights_are_refused(model, folder):
    whole = (folder / WEIGHTS).read_bytes()
    for damaged in (whole[:-7], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        (folder / WEIGHTS).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            load_heads(folder, model)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"lacks heads\.safetensors"):
        load_heads(folder, model)


def test_other_tensors_are_refused(model, folder):
    tensors = load_file(folder / WEIGHTS)
    tensors.pop("heads.0.norm.weight")
    save_file(tensors, folder / WEIGHTS)
    changed(folder, weights=sha256((folder / WEIGHTS).read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="holds other tensors than heads of this model"):
        load_heads(folder, model)


def test_no_heads_at_all(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no exit heads in .*; train them with"):
        load_heads(tmp_path, model)
