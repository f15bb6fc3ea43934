"""Adapters are trained: they learn, the backbone does not, and a stopped run goes on."""

import json
import math
import os
import signal
from dataclasses import replace
from unittest import mock

import pytest
import torch

from llmcourse import pretrained
from llmcourse.blockwise import AdapterConfig, BlockDecoder, denoising_loss, first_pass_loss, load_adapters
from llmcourse.model import Decoder
from llmcourse.training import blocks
from llmcourse.training.blocks import BlockRecipe, held_out_losses, main, train_adapters
from llmcourse.training.evaluate import HeldOut
from llmcourse.training.paced import LEAST_STEPS
from llmcourse.training.pretrain import init_weights
from llmcourse.training.tokens import Domain
from tests.training.tiny import tiny_config

PATTERN = Domain("pattern", (torch.arange(4000) % 7 * 5 + 3).int())
RECIPE = BlockRecipe(
    steps=60, batch_size=8, sequence_length=24, rate=0.02, sizes=(2, 4, 8), mix={"pattern": 1.0}
)


def fresh() -> BlockDecoder:
    backbone = Decoder(tiny_config(vocab_size=64)).eval()
    init_weights(backbone, 0)
    backbone.model.embed_tokens.weight.data.mul_(15)  # so that its logits can tell tokens apart
    return BlockDecoder(backbone, AdapterConfig(rank=8, alpha=16, num_masks=4))


def test_a_pattern_is_learnt_and_the_backbone_stays():
    model, rows = fresh(), PATTERN.windows(0, 8, 24, seed=9)
    before = pretrained.fingerprint(model.backbone)
    first = first_pass_loss(model, rows, 4).item()
    trained = train_adapters(model, [PATTERN], RECIPE)
    assert trained.steps == 60
    assert first_pass_loss(model, rows, 4).item() < first - 1
    assert pretrained.fingerprint(model.backbone) == before


def test_a_seed_gives_the_same_adapters():
    models = [fresh(), fresh()]
    for model in models:
        train_adapters(model, [PATTERN], BlockRecipe(**RECIPE.__dict__ | {"steps": 3}))
    first, second = (model.adapters() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    untrained = fresh().adapters()
    assert not any(torch.equal(first[name], untrained[name]) for name in first)


def test_a_time_limit_ends_a_run():
    steps = train_adapters(fresh(), [PATTERN], replace(RECIPE, steps=10**9), limit_s=3).steps
    assert LEAST_STEPS <= steps < 10**9
    with pytest.raises(ValueError, match="steps of blocks in 0 s must be at least 20, got 1; give more time"):
        train_adapters(fresh(), [PATTERN], RECIPE, limit_s=1e-9)


def interrupted_at(step: int):
    """A signal in the middle of a step, counted from where this run starts: two passes come before."""
    whole, calls = blocks.denoising_loss, iter(range(10**6))

    def loss(*arguments):
        if next(calls) == step + 2:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(*arguments)

    return mock.patch.object(blocks, "denoising_loss", loss)


class TestGoingOn:
    RECIPE = replace(RECIPE, steps=6)

    def test_an_interrupted_run_ends_as_one_that_was_not(self, tmp_path):
        whole, halves, path = fresh(), fresh(), tmp_path / "blocks.pt"
        train_adapters(whole, [PATTERN], self.RECIPE)
        with interrupted_at(2), pytest.raises(KeyboardInterrupt):
            train_adapters(halves, [PATTERN], self.RECIPE, state_path=path)
        untrained = fresh()
        trained = train_adapters(untrained, [PATTERN], self.RECIPE, state_path=path)
        assert trained.steps == 6
        for name, adapter in whole.adapters().items():
            assert torch.equal(untrained.adapters()[name], adapter)
            assert not torch.equal(halves.adapters()[name], adapter)

    def test_a_run_that_has_ended_is_not_trained_further(self, tmp_path):
        first, path = fresh(), tmp_path / "blocks.pt"
        train_adapters(first, [PATTERN], self.RECIPE, state_path=path)
        again = fresh()
        with mock.patch.object(blocks, "denoising_loss", side_effect=AssertionError):
            trained = train_adapters(again, [PATTERN], self.RECIPE, state_path=path)
        assert trained.steps == 6 and math.isnan(trained.loss)
        assert all(torch.equal(again.adapters()[name], p) for name, p in first.adapters().items())

    def test_the_clock_goes_on_too(self, tmp_path):
        path = tmp_path / "blocks.pt"
        with interrupted_at(2), pytest.raises(KeyboardInterrupt):
            train_adapters(fresh(), [PATTERN], self.RECIPE, state_path=path)
        state = torch.load(path)
        assert state["step"] == 3 and state["model"]["seconds"] > 0
        state["model"]["seconds"].fill_(1000)  # more than a test takes
        torch.save(state, path)
        with pytest.raises(ValueError, match="steps of blocks in 1000 s must be at least 6, got 3"):
            train_adapters(fresh(), [PATTERN], self.RECIPE, limit_s=1000, state_path=path)
        assert train_adapters(fresh(), [PATTERN], self.RECIPE, state_path=path).seconds > 1000

    def test_a_run_that_was_too_short_is_so_at_every_start(self, tmp_path):
        path, recipe = tmp_path / "blocks.pt", replace(RECIPE, steps=60)
        for _ in range(2):
            with pytest.raises(ValueError, match="must be at least 20, got 1; give more time"):
                train_adapters(fresh(), [PATTERN], recipe, limit_s=1e-9, state_path=path)
        assert train_adapters(fresh(), [PATTERN], recipe, limit_s=1e6, state_path=path).steps == 60

    def test_another_run_is_refused(self, tmp_path):
        path = tmp_path / "blocks.pt"
        train_adapters(fresh(), [PATTERN], self.RECIPE, state_path=path)
        smaller = BlockDecoder(fresh().backbone, AdapterConfig(rank=4, alpha=8, num_masks=4))
        with pytest.raises(ValueError, match=r"made with another recipe \(adapters was .*'rank': 8"):
            train_adapters(smaller, [PATTERN], self.RECIPE, state_path=path)


def test_a_loss_that_is_no_number_ends_the_run():
    def broken(model, rows, noise):
        return denoising_loss(model, rows, noise) * math.nan

    with (
        mock.patch.object(blocks, "denoising_loss", broken),
        pytest.raises(FloatingPointError, match="blocks, step 25: the loss is nan; lower the learning rate"),
    ):
        train_adapters(fresh(), [PATTERN], RECIPE)


def test_held_out_loss_is_the_mean_over_windows():
    model = fresh()
    held_out = HeldOut("pattern", PATTERN.tokens[:100], 100)
    rows = PATTERN.tokens[:96].long().view(4, 24)
    found = held_out_losses(model, held_out, (1, 4), length=24, max_windows=9)
    assert found == {n: pytest.approx(first_pass_loss(model, rows, n).item(), rel=1e-5) for n in (1, 4)}
    half = held_out_losses(model, held_out, (4,), length=24, max_windows=2)
    assert half == {4: pytest.approx(first_pass_loss(model, rows[::2], 4).item(), rel=1e-5)}
    with pytest.raises(ValueError, match="held-out text of pattern must be 101 tokens, got 100"):
        held_out_losses(model, held_out, (1,), length=101, max_windows=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("sequence_length", 2), ("rate", 0.0), ("rate", math.inf), ("sizes", ())],
)
def test_recipes_that_cannot_be_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        BlockRecipe(**{name: value})


class TestProgram:
    @pytest.fixture
    def options(self, tiny_checkpoint, text_options, tmp_path):
        sizes = ["--batch-size", "4", "--sequence-length", "16", "--rank", "2", "--windows", "2"]
        run = ["--steps", "4", "--device", "cpu", "--out", str(tmp_path / "out")]
        return [*text_options, "--backbone", str(tiny_checkpoint), *sizes, *run]

    def test_text_becomes_adapters_and_a_report(self, options, tiny_checkpoint, tmp_path):
        assert main(options) == 0
        backbone = pretrained.load(tiny_checkpoint).model
        model = load_adapters(tmp_path / "out", backbone)
        assert model.adapter_config == AdapterConfig(rank=2, alpha=4)
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["backbone"] == pretrained.fingerprint(backbone) and report["steps"] == 4
        sizes = ["1", *map(str, blocks.SIZES)]
        assert {name: list(found) for name, found in report["nats_per_token"].items()} == {
            "poems": sizes,
            "code": sizes,
        }

    def test_interrupted_it_goes_on(self, options, tmp_path, capsys):
        out, whole = tmp_path / "out", tmp_path / "whole"
        with interrupted_at(1):
            assert main(options) == 130
        assert capsys.readouterr().err.endswith("interrupted; start again with the same arguments to go on\n")
        assert not (out / "add_on.json").exists()
        assert main(options) == 0 and main([*options, "--out", str(whole)]) == 0
        assert (out / "add_on.safetensors").read_bytes() == (whole / "add_on.safetensors").read_bytes()
        assert (out / "report.json").exists()

    @pytest.mark.parametrize(
        ("message", "changed"),
        [
            ("sequence_length must be at most the context, 64, got 65", ["--sequence-length", "65"]),
            ("rank must be an integer of at least 1, got 0", ["--rank", "0"]),
            ("rank must be at most the hidden size, 32, got 100000", ["--rank", "100000"]),
            ("rate must be above 0", ["--rate", "-1"]),
            ("windows must be an integer of at least 1", ["--windows", "0"]),
            ("no model or folder named 'nothing'", ["--backbone", "nothing"]),
            ("batch_size must be at least 2, one a domain, got 1", ["--batch-size", "1"]),
        ],
    )
    def test_errors_are_one_line(self, options, message, changed, capsys):
        assert main([*options, *changed]) == 2
        errors = capsys.readouterr().err.splitlines()[-1]
        assert errors.startswith("error: ") and message in errors

    def test_no_text_is_an_error(self, tiny_checkpoint, tmp_path, capsys):
        assert main(["--backbone", str(tiny_checkpoint), "--out", str(tmp_path)]) == 2
        assert "error: no text given" in capsys.readouterr().err

    def test_the_tokenizer_of_another_model_is_refused(self, options, tmp_path, capsys):
        work = tmp_path / "out" / ".training"
        work.mkdir(parents=True)
        (work / "tokenizer.json").write_text("{}")
        assert main(options) == 2
        assert "was made with another tokenizer" in capsys.readouterr().err
