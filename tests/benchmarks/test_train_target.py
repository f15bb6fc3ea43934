"""The loop of benchmarks/train_target.py: how many steps fit into the time, and that they are pretrain's."""

import itertools
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import distill_runs
import train_target

from llmcourse.model import Decoder
from llmcourse.pretrained import find_checkpoint
from llmcourse.training.options import read_corpus
from llmcourse.training.pretrain import NextTokenLoss, init_weights, pretrain
from llmcourse.training.tokenizer import load_tokenizer
from llmcourse.training.tokens import Domain
from tests.benchmarks.tiny_course import texts
from tests.training.tiny import tiny_recipe

CPU = torch.device("cpu")
RECIPE = tiny_recipe(steps=1, warmup=20, mix={"counted": 1.0})  # risen when the number of steps is known
COUNTED = Domain("counted", torch.arange(4000, dtype=torch.int32) * 7 % 300, 0)


@pytest.fixture
def target():
    model = Decoder(RECIPE.model)
    init_weights(model, RECIPE.seed)
    return model


def test_it_makes_the_steps_of_pretrain_for_as_long_as_there_is_time(target, tmp_path, monkeypatch, capsys):
    """By a clock that is read at the start, at two steps and at the end: 0 s, 0.5 s, 1 s, 1.5 s."""
    monkeypatch.setattr(train_target.time, "monotonic", (n / 2 for n in itertools.count()).__next__)
    said = train_target.train(NextTokenLoss(target), target, RECIPE, [COUNTED], 2.0)
    monkeypatch.undo()
    steps = 16 + 16  # 8 in half a second, and a second is left
    assert said.startswith(f"{steps} steps, 0.0 M tokens in 2 s, loss of the last ten ")
    assert capsys.readouterr().out.startswith("tiny step 0 of 1000000: 5.")
    recipe = tiny_recipe(steps=steps, warmup=20, mix=RECIPE.mix)
    same = pretrain(recipe, [COUNTED], tmp_path / "x.pt", device=CPU, compile_model=False)
    for name, weight in same.named_parameters():
        assert torch.equal(weight, target.get_parameter(name)), name


def test_a_step_too_long_for_the_time_is_the_last(target, monkeypatch):
    """And the rates know it: none is below zero."""
    monkeypatch.setattr(train_target.time, "monotonic", (100.0 * n for n in itertools.count()).__next__)
    with mock.patch.object(train_target, "set_rates", wraps=train_target.set_rates) as rates:
        said = train_target.train(NextTokenLoss(target), target, RECIPE, [COUNTED], 2.0)
    assert said.startswith("17 steps") and rates.call_args.args[2].steps == 17


def test_a_target_that_was_not_written_to_its_end_has_no_config(target, tmp_path, monkeypatch):
    """By which chapter_04.sh tells whether there is one."""
    given = target, find_checkpoint("draft"), tmp_path / "target"
    for step in ("write_weights", "tokenizer_config"):
        with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
            stopped.setattr(train_target, step, mock.Mock(side_effect=KeyboardInterrupt))
            train_target.save(*given)
        assert not (tmp_path / "target/config.json").exists()
    train_target.save(*given)
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in (tmp_path / "target").iterdir()} == files


def test_text_is_asked_for(monkeypatch):
    """As by all training programs."""
    monkeypatch.setattr(sys, "argv", ["train_target.py", "--out", "nowhere"])
    with pytest.raises(ValueError, match="no text given; use --text, --blocks or --python NAME=PATH"):
        train_target.main()


def test_texts_that_were_prepared_for_others_are_the_same(tmp_path):
    """By the program that makes tokens for all benchmarks of distillation."""
    named, folder, out = texts(tmp_path), find_checkpoint("draft"), tmp_path / "out"
    distill_runs.main([f"--out={out}", *named, "--device=cpu"])
    corpus = read_corpus(train_target.parser().parse_args([*named, "--out=x"]))
    made = train_target.prepare(corpus, load_tokenizer(folder / "tokenizer.json"), CPU)
    found = train_target.prepared_texts(corpus, folder, out, CPU)
    for ours, theirs in zip(found, made, strict=True):
        assert [one.name for one in ours] == [one.name for one in theirs] == ["prose", "poetry"]
        assert all(torch.equal(one.tokens, two.tokens) for one, two in zip(ours, theirs, strict=True))
    assert [one.num_chars for one in found[1]] == [one.num_chars for one in made[1]]
    assert [one.separator for one in found[0]] == [one.separator for one in made[0]]
