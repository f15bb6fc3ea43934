"""Training of Medusa's heads: what is learnt, what is written, and that a run can be stopped and resumed."""

from __future__ import annotations

import itertools
import json
import os
import signal
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from llmcourse.decoding.engine import DecodeEngine
from llmcourse.model import Decoder
from llmcourse.pretrained import CheckpointError, fingerprint, load
from llmcourse.speculative.medusa import HeadsConfig, MedusaHeads, load_heads
from llmcourse.training import paced
from llmcourse.training.backbone import train
from llmcourse.training.family import training_domains
from llmcourse.training.heads import HeadsLoss, HeadsRecipe, Jointly, heads_optimizers
from llmcourse.training.medusa import accuracy_report, main, parser
from llmcourse.training.options import read_corpus
from llmcourse.training.own_text import own_domains
from llmcourse.training.paced import Trained
from llmcourse.training.pretrain import init_weights
from llmcourse.training.tokens import Domain
from tests.training.tiny import tiny_config, tiny_recipe

CPU = torch.device("cpu")
PATTERN = Domain("pattern", (torch.arange(4000) % 7 * 5 + 3).int())
SMALL = ["--heads", "2", "--batch-size", "4", "--length", "16", "--steps", "3", "--device", "cpu"]


def backbone() -> Decoder:
    model = Decoder(tiny_config(vocab_size=64))
    init_weights(model, 0)
    return model


def run_of(**changes):
    sizes = dict(model=tiny_config(vocab_size=64), mix={"pattern": 1.0}, sequence_length=24)
    return tiny_recipe(**sizes | dict(steps=60, matrix_lr=0.02, other_lr=0.02) | changes)


def trained(model, recipe, path, **changes) -> tuple[MedusaHeads, Trained]:
    heads = MedusaHeads(HeadsConfig.for_model(model, recipe.num_heads))
    model.requires_grad_(recipe.joint)
    run = run_of(**changes)
    module = Jointly(heads, model) if recipe.joint else heads
    optimizers, loss = heads_optimizers(heads, model, run, recipe), HeadsLoss(model, heads, recipe)
    return heads, train(run, [PATTERN], module, optimizers, loss, path, device=CPU)


def test_the_loss_is_of_each_head_s_own_token():
    model, recipe = backbone(), HeadsRecipe(num_heads=2, decay=0.5)
    heads = MedusaHeads(HeadsConfig.for_model(model, 2))
    rows = PATTERN.windows(0, 3, 10, seed=0)
    logits = model(rows[:, :-1])  # of untrained heads too
    each = [F.cross_entropy(logits[:, : 9 - k].flatten(0, 1), rows[:, 1 + k :].flatten()) for k in (1, 2)]
    expected = (0.5 * each[0] + 0.25 * each[1]) / 0.75
    loss = HeadsLoss(model, heads, recipe)(rows)
    torch.testing.assert_close(loss, expected)
    joint = HeadsLoss(model, heads, HeadsRecipe(num_heads=2, decay=0.5, joint=True, heads_weight=0.3))(rows)
    next_token = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    torch.testing.assert_close(joint, next_token + 0.3 * expected)


def test_heads_learn_and_the_backbone_stays(tmp_path):
    model = backbone()
    before, rows = fingerprint(model), PATTERN.windows(0, 8, 24, seed=9)
    recipe = HeadsRecipe(num_heads=2)
    untrained = HeadsLoss(model, MedusaHeads(HeadsConfig.for_model(model, 2)), recipe)(rows)
    heads, end = trained(model, recipe, tmp_path / "heads.pt")
    assert end.steps == 60 and fingerprint(model) == before
    assert HeadsLoss(model, heads, recipe)(rows) < untrained - 0.2


def test_jointly_the_backbone_learns_more_slowly(tmp_path):
    recipe = HeadsRecipe(num_heads=1, joint=True, backbone_scale=0.25)
    model = backbone()
    before, rows = fingerprint(model), PATTERN.windows(0, 8, 24, seed=9)
    loss = HeadsLoss(model, MedusaHeads(HeadsConfig.for_model(model, 1)), recipe)(rows).item()
    heads, _ = trained(model, recipe, tmp_path / "heads.pt")
    assert fingerprint(model) != before and HeadsLoss(model, heads, recipe)(rows) < loss - 0.5
    optimizers = heads_optimizers(heads, model, run_of(), recipe)
    for optimizer in optimizers:
        ours, theirs = optimizer.param_groups
        assert theirs["lr"] == pytest.approx(0.25 * ours["lr"]) and ours["lr"] > 0
    held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    assert held == {id(p) for p in [*heads.parameters(), *model.parameters()]}


@pytest.mark.parametrize(
    "change",
    [{"num_heads": 0}, {"decay": 0.0}, {"decay": 1.5}, {"backbone_scale": 0.0}, {"heads_weight": 0.0}],
)
def test_numbers_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=rf"{next(iter(change))} must be"):
        HeadsRecipe(**change)


def test_accuracies_are_counted_per_domain_and_head():
    model = backbone()
    heads = MedusaHeads(HeadsConfig.for_model(model, 2))
    tokens = PATTERN.tokens[:100]
    report = accuracy_report(model, heads, {"a": tokens, "b": tokens[:50]}, 20)
    assert report["a"]["positions"] == 5 * 17 and set(report["b"]["top_k"]) == {"head_1", "head_2"}
    for row in report["a"]["top_k"].values():
        assert row == sorted(row) and len(row) == 10 and 0 <= row[0] <= row[-1] <= 1
    best = model(tokens[None, :20].long())[0].argmax(-1)
    one = accuracy_report(model, heads, {"a": tokens[:20]}, 20)["a"]["top_k"]["head_2"][0]
    assert one == pytest.approx((best[:17] == tokens[3:20]).double().mean().item(), abs=1e-4)


# ---- the program


@pytest.fixture
def fails(tiny_checkpoint, text_options, tmp_path, capsys):
    """Ends with exit code 2 and one line that holds the message."""

    def run(message, *options):
        arguments = [*text_options, "--model", str(tiny_checkpoint), *SMALL, *options]
        arguments += [] if "--out" in options else ["--out", str(tmp_path / "out")]
        code = main(arguments)
        errors = capsys.readouterr().err
        assert code == 2 and message in errors.splitlines()[-1], errors

    return run


def interrupted_at(step: int):
    """A signal in the middle of a step, counted from where this run starts: one pass comes before."""
    whole, calls = HeadsLoss.forward, iter(range(10**6))

    def forward(self, rows):
        if next(calls) == step + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(self, rows)

    return mock.patch.object(HeadsLoss, "forward", forward)


def test_from_text_to_heads_in_two_starts(tiny_checkpoint, text_options, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [*text_options, "--model", str(tiny_checkpoint), *SMALL, "--out", str(out)]
    with interrupted_at(1):
        assert main(arguments) == 130
    assert "interrupted; start again with the same arguments to go on" in capsys.readouterr().err
    assert not (out / "add_on.json").exists()
    assert torch.load(out / ".training" / "heads.pt")["step"] == 2
    assert main(arguments) == 0
    model, _ = load(tiny_checkpoint)
    heads = load_heads(out, model)
    assert heads.config.num_heads == 2
    report = json.loads((out / "accuracy.json").read_text(encoding="utf-8"))
    assert set(report["held_out"]) == {"poems", "code"} and report["trained"]["backbone"] == fingerprint(
        model
    )
    assert "heads are right at" in capsys.readouterr().out
    assert main([*arguments, "--joint", "--steps", "2"]) == 2, "a checkpoint of another run lies there"


def test_a_run_ends_by_the_clock(tiny_checkpoint, text_options, tmp_path, monkeypatch):
    """By one that is asked once a step, 36 ms later each time, however slow the machine."""
    monkeypatch.setattr(paced.time, "monotonic", itertools.count(0, 0.0361).__next__)
    out = tmp_path / "out"
    arguments = [*text_options, "--model", str(tiny_checkpoint), *SMALL, "--out", str(out)]
    assert main([*arguments, "--steps", "5000", "--minutes", "0.03"]) == 0
    trained = json.loads((out / "accuracy.json").read_text(encoding="utf-8"))["trained"]
    assert trained["steps"] == 50 and trained["tokens"] == 50 * 4 * 16
    optimizers = torch.load(out / ".training" / "heads.pt")["optimizers"]
    assert all(one["param_groups"][0]["lr"] < 0.001 for one in optimizers), "near zero at the end"


def test_heads_learn_from_what_their_backbone_writes(tiny_checkpoint, text_options, tmp_path):
    """Rows that begin with given text and go on greedily; written once, and read again."""
    out = tmp_path / "out"
    arguments = [*text_options, "--model", str(tiny_checkpoint), *SMALL, "--own-text", "300"]
    assert main([*arguments, "--out", str(out)]) == 0
    model, _ = load(tiny_checkpoint)
    work = out / ".training"
    options = parser().parse_args([*arguments, "--out", str(out)])
    given = training_domains(read_corpus(options), work, CPU)
    with mock.patch.object(DecodeEngine, "start", side_effect=AssertionError("written before")):
        found = own_domains(model, given, 300, 16, work)
    assert [domain.name for domain in found] == [domain.name for domain in given]
    for own, domain in zip(found, given, strict=True):
        rows = own.tokens.view(-1, 16)  # 300 tokens are 19 rows, which 16 at a time make 32
        assert len(rows) == 32 and own.separator == domain.separator
        begun = {tuple(window.tolist()) for window in domain.tokens.unfold(0, 4, 1)}
        assert all(tuple(row[:4].tolist()) in begun for row in rows)
        engine = DecodeEngine(model)
        engine.start(rows[:, :4].tolist(), 16)
        assert engine.decode(12).equal(rows[:, 4:].long())


def test_joint_training_writes_its_own_backbone(tiny_checkpoint, text_options, tmp_path):
    out = tmp_path / "out"
    arguments = [*text_options, "--model", str(tiny_checkpoint), *SMALL, "--joint", "--out", str(out)]
    assert main(arguments) == 0
    before, _ = load(tiny_checkpoint)
    after, _ = load(out / "backbone")
    load_heads(out, after)
    with pytest.raises(CheckpointError, match="backbone of Medusa heads"):
        load_heads(out, before)


def test_errors_of_one_line(fails, tmp_path):
    fails("no model or folder named 'nowhere'", "--model", "nowhere")
    fails("num_heads must be an integer of at least 1, got 0", "--heads", "0")
    fails("length must be above the number of heads, 2, got 2", "--length", "2")
    fails("own_text must be at least 1 token, got 0", "--own-text", "0")
    fails("length must be from 4 to the model's context", "--own-text", "9", "--length", "3", "--heads", "1")
    fails("batch_size must be at least 1, got 0", "--batch-size", "0")
    fails("sequence_length must be at most the model's context, 64, got 65", "--length", "65")
    fails("device must be one that this machine has, got 'cuda:99'", "--device", "cuda:99")
    work = tmp_path / "used" / ".training"
    work.mkdir(parents=True)
    (work / "tokenizer.json").write_text("{}", encoding="utf-8")
    fails("was made with another tokenizer; remove it", "--out", str(tmp_path / "used"))
