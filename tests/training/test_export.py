"""Checkpoints as written: both loaders read them, and the card tells what they are."""

import json
import os
import stat
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmcourse.model import Decoder
from llmcourse.pretrained import load, read_config
from llmcourse.training import export as module
from llmcourse.training.evaluate import Loss
from llmcourse.training.export import DomainReport, RunReport, check_replaceable, export
from llmcourse.training.recipes import MIX
from tests.tiny_tokenizer import tiny_tokenizer_json
from tests.training.tiny import tiny_config, tiny_recipe


def decoder(**changes) -> Decoder:
    """Random weights that bf16 holds exactly."""
    torch.manual_seed(0)
    model = Decoder(tiny_config(**changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
        parameter.data = parameter.data.bfloat16().float()
    return model


def report(*names: str, **changes) -> RunReport:
    losses = [Loss(2.34567, 1.23456), Loss(3.5, 0.75), Loss(1.0, 0.5)]
    domains = [
        DomainReport(name, f"texts of {name}", 12_345, 6_780_000, 67, 890_123, loss)
        for name, loss in zip(names, losses, strict=False)
    ]
    recipe = tiny_recipe(mix={"prose": 3.0, "code": 1.0})
    values = dict(
        recipe=recipe, domains=domains, device="one Abacus", versions={"torch": "9.8"}, train_s=76.5
    )
    return RunReport(**values | changes)


@pytest.fixture
def write(tmp_path):
    tokenizer = tmp_path / "work.json"
    tokenizer.write_text(tiny_tokenizer_json(), encoding="utf-8")

    def run(model, about=None, name="tiny"):
        export(model, tokenizer, about or report("prose", "code"), tmp_path / "out" / name)
        return tmp_path / "out" / name

    return run


@torch.no_grad()
def assert_loads_in_both(folder, model) -> None:
    ids = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(0))
    theirs = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    ours, tokenizer = load(folder)
    assert ours.config == model.config == read_config(folder)
    torch.testing.assert_close(ours(ids), model(ids), atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs(ids, use_cache=False).logits, model(ids), atol=1e-4, rtol=0)
    their_tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = "Once upon a time\n床前明月光<|sep|>"
    assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text)
    specials = (their_tokenizer.bos_token_id, their_tokenizer.eos_token_id, their_tokenizer.pad_token_id)
    assert (*specials, their_tokenizer.mask_token_id, their_tokenizer.sep_token_id) == (0, 0, 1, 2, 3)
    assert theirs.generation_config.eos_token_id == 0 and their_tokenizer.model_max_length == 32


class TestWeights:
    @pytest.mark.parametrize("tied", [True, False])
    def test_one_file(self, write, tied):
        model = decoder(tie_word_embeddings=tied)
        folder = write(model)
        stored = load_file(folder / "model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
        assert ("lm_head.weight" in stored) is not tied
        assert not list(folder.glob("*.index.json"))
        assert_loads_in_both(folder, model)

    def test_sharded_when_too_large_for_one(self, write, monkeypatch):
        monkeypatch.setattr(module, "MAX_SHARD_BYTES", 20_000)
        model = decoder(num_layers=3)
        folder = write(model)
        files = sorted(folder.glob("*.safetensors"))
        assert len(files) == 4
        assert [file.name for file in files] == [f"model-0000{n}-of-00004.safetensors" for n in range(1, 5)]
        shards = [load_file(file) for file in files]
        assert all(sum(t.nbytes for t in shard.values()) <= 20_000 for shard in shards)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        held = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
        assert index["weight_map"] == held
        assert index["metadata"]["total_size"] == 2 * model.num_parameters
        assert_loads_in_both(folder, model)

    def test_a_tensor_larger_than_a_shard_stands_alone(self, write, monkeypatch):
        monkeypatch.setattr(module, "MAX_SHARD_BYTES", 1)
        model = decoder()
        folder = write(model)
        assert len(list(folder.glob("*.safetensors"))) == len(load(folder).model.state_dict()) - 1
        assert_loads_in_both(folder, model)


class TestFolder:
    def test_everybody_may_read_it(self, write):
        before = os.umask(0o077)
        try:
            folder = write(decoder())
        finally:
            os.umask(before)
        files = list(folder.iterdir())
        assert len(files) == 6
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o644}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755

    def test_a_checkpoint_is_replaced_whole(self, write, monkeypatch):
        monkeypatch.setattr(module, "MAX_SHARD_BYTES", 20_000)
        write(decoder(num_layers=3))
        monkeypatch.undo()
        model = decoder()
        folder = write(model)
        assert len(list(folder.glob("*.safetensors*"))) == 1
        assert [path.name for path in folder.parent.iterdir()] == ["tiny"], "nothing is left beside it"
        assert_loads_in_both(folder, model)

    def test_other_folders_are_not_removed(self, write, tmp_path):
        mine = tmp_path / "out" / "thesis"
        mine.mkdir(parents=True)
        check_replaceable(mine)  # empty
        (mine / "chapter.txt").write_text("years of work", encoding="utf-8")
        with pytest.raises(FileExistsError, match="thesis is no checkpoint, and would be replaced"):
            write(decoder(), name="thesis")
        assert (mine / "chapter.txt").read_text(encoding="utf-8") == "years of work"
        with pytest.raises(FileExistsError):
            check_replaceable(mine / "chapter.txt")


class TestCard:
    def card(self, write, about, **changes) -> str:
        return " ".join((write(decoder(**changes), about) / "README.md").read_text(encoding="utf-8").split())

    def test_data_recipe_losses_licence(self, write):
        card = self.card(write, report("prose", "code"))
        for part in (
            "license: mit",
            "# tiny: a decoder of 0.0 million parameters",
            "| 1 | 32 | 64 | 4 / 2 | 32 | byte-level BPE, 300 tokens, shared by the family |",
            "| prose | texts of prose | 12,345 | 6.8 M | 75% |",
            "| code | texts of code | 12,345 | 6.8 M | 25% |",
            "6 steps of 4 × 32 tokens (0 million in all)",
            "Muon (0.006) for the matrices",
            "AdamW (0.006)",
            "weight decay 0.1, 2 steps of warm-up",
            "fp32, seed 0. 76 s on one Abacus; torch 9.8.",
            "| prose | 67 | 890,123 | 2.346 | 1.235 |",
            "| code | 67 | 890,123 | 3.500 | 0.750 |",
            "in windows of 32 tokens",
            "The weights are released under the MIT licence.",
        ):
            assert part in card, card

    def test_a_domain_that_the_mix_leaves_out(self, write):
        card = self.card(write, report("prose", "code", "letters"))
        shares = [line for line in ("| 50% |", "| 17% |", "| 33% |") if line in card]
        assert len(shares) == 3, "3 : 1 : their mean, 2"

    def test_of_the_course_s_text_more_is_known(self, write):
        course = replace(report(*MIX), recipe=tiny_recipe(mix=dict(MIX)))
        card = self.card(write, course)
        assert "language: [en, zh]" in card and "in the public domain by age" in card
        other = self.card(write, report("prose", "code"))
        assert "language:" not in other and "public domain" not in other and "Chinese" not in other
        assert "remains under the terms of its authors" in other
