"""Training exit heads: the losses by hand, the program on a tiny backbone, and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from llmcourse.early_exit import ExitHeads, load_heads
from llmcourse.pretrained import CheckpointError, load
from llmcourse.training import exits, paced
from llmcourse.training.exit_loss import ExitLoss
from llmcourse.training.exits import main
from llmcourse.training.layer_skip import LayerSkip
from llmcourse.training.optimizer import build_optimizers, set_rates
from llmcourse.training.paced import Trained
from tests.early_exit.tiny import random_heads
from tests.speculative.tiny import tiny_decoder
from tests.training.tiny import tiny_recipe

ROOT = Path(__file__).parents[2]
ROWS = torch.tensor([[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]])
SMALL = ["--steps", "12", "--batch-size", "4", "--length", "32", "--windows", "4", "--fit", "3"]


def logits_and_targets(heads):
    return [each.flatten(0, 1) for each in heads.logits(ROWS[:, :-1])], ROWS[:, 1:].flatten()


def test_both_objectives_are_their_definitions():
    heads = random_heads()
    (*early, last), targets = logits_and_targets(heads)
    nats = torch.stack([F.cross_entropy(each, targets) for each in early]).mean()
    torch.testing.assert_close(ExitLoss(heads, "next")(ROWS), nats)
    p = last.softmax(-1)
    kl = torch.stack([(p * (p.log() - each.log_softmax(-1))).sum(-1).mean() for each in early]).mean()
    torch.testing.assert_close(ExitLoss(heads, "last")(ROWS), kl)
    assert kl > 0.01 and abs(kl - nats) > 0.01
    with pytest.raises(ValueError, match="objective must be 'last' or 'next', got 'both'"):
        ExitLoss(heads, "both")


def test_exits_that_are_named_are_trained_alone():
    heads = random_heads().requires_grad_(True)
    (_, second, *_), targets = logits_and_targets(heads)
    loss = ExitLoss(heads, "next", [2])(ROWS)
    torch.testing.assert_close(loss, F.cross_entropy(second, targets))
    loss.backward()
    assert [head.residual.weight.grad is not None for head in heads.heads] == [False, True, False]
    with pytest.raises(ValueError, match="an exit must be at most 3, got 4"):
        ExitLoss(heads, "next", [4])


@pytest.mark.parametrize("objective", ["last", "next"])
def test_only_the_heads_learn(objective):
    heads = ExitHeads(tiny_decoder(num_layers=3))
    ExitLoss(heads, objective)(ROWS).backward()
    assert all(p.grad is not None and p.grad.any() for p in heads.parameters())
    assert all(p.grad is None for p in heads.backbone.parameters())


@pytest.fixture(scope="module")
def trained(text_options, tiny_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("exits")
    options = [*text_options, *SMALL, "--device", "cpu", "--model", str(tiny_checkpoint), "--out", str(out)]
    return options, out, main(options)


def test_the_program_writes_heads_and_a_report(trained, tiny_checkpoint):
    _, out, code = trained
    backbone = load(tiny_checkpoint).model
    heads = load_heads(out, backbone)
    assert code == 0 and heads.head(1).residual.weight.any()
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert set(report) == {"poems", "code"}
    for found in report.values():
        assert found["layers"] == [1, 2] and found["agreement"][-1] == 1 and found["positions"] > 50
        assert len(found["accuracy"]) == len(found["entropy"]) == 2


@pytest.mark.parametrize("objective", ["last", "next"])
def test_heads_learn(objective):
    heads = ExitHeads(tiny_decoder(num_layers=3))
    rows = torch.randint(40, (4, 17), generator=torch.Generator().manual_seed(0))
    recipe = tiny_recipe(steps=20, warmup=1)
    optimizers, loss_of = build_optimizers(heads, recipe), ExitLoss(heads, objective)
    before = loss_of(rows).item()
    for step in range(20):
        set_rates(optimizers, step, recipe)
        loss_of(rows).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert loss_of(rows) < 0.95 * before


def interrupted_at(loss, step: int):
    """A signal in the middle of a step, counted from where this run starts: each turn passes once before."""
    whole, calls, before = loss.forward, iter(range(10**6)), 2 if loss is LayerSkip else 1

    def forward(self, *arguments):
        if next(calls) == step + before:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(self, *arguments)

    return mock.patch.object(loss, "forward", forward)


@pytest.mark.parametrize("joint", [False, True])
def test_interrupted_and_on_again_is_one_run(trained, tmp_path, capsys, joint):
    options, _, _ = trained
    options = [*options[:-2], *(["--layer-dropout", "0.3"] if joint else []), "--out"]
    out, again = tmp_path / "whole", tmp_path / "again"
    assert main([*options, str(out)]) == 0
    with interrupted_at(LayerSkip if joint else ExitLoss, 4):
        assert main([*options, str(again)]) == 130
    assert capsys.readouterr().err.endswith("interrupted; start again with the same arguments to go on\n")
    assert torch.load(again / ".training" / "exits.pt")["step"] == 5
    assert not (again / "add_on.json").exists()
    assert main([*options, str(again)]) == 0
    for name in ["add_on.safetensors", *(["backbone/model.safetensors"] if joint else [])]:
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_a_run_ends_by_the_clock(trained, tmp_path, monkeypatch):
    """By one that is asked once a step, 36 ms later each time, however slow the machine."""
    monkeypatch.setattr(paced.time, "monotonic", itertools.count(0, 0.0361).__next__)
    options, _, _ = trained
    minutes = ["--steps", "5000", "--minutes", "0.03"]
    assert main([*options[:-1], str(tmp_path), *minutes]) == 0
    notes = json.loads((tmp_path / "add_on.json").read_text(encoding="utf-8"))["notes"]
    assert notes["steps"] == 50
    optimizers = torch.load(tmp_path / ".training" / "exits.pt")["optimizers"]
    assert all(one["param_groups"][0]["lr"] < 0.1 * exits.RATE for one in optimizers), "near zero at the end"


def test_a_time_too_short_for_training(trained, tmp_path, capsys):
    options, _, _ = trained
    assert main([*options[:-1], str(tmp_path), "--minutes", "1e-9"]) == 2
    assert "in 0 s must be at least 12, got 1; give more time" in capsys.readouterr().err


def test_another_objective_in_a_used_folder_is_refused(trained, capsys):
    options, _, _ = trained
    assert main([*options, "--objective", "next"]) == 2
    assert (
        "was made with another recipe (name was exits, objective last, exits [1], fit 3, on"
        in capsys.readouterr().err
    )


def test_layer_dropout_trains_a_backbone_for_its_heads(text_options, tiny_checkpoint, tmp_path):
    options = [*text_options, *SMALL, "--device", "cpu", "--layer-dropout", "0.2"]
    assert main([*options, "--model", str(tiny_checkpoint), "--out", str(tmp_path)]) == 0
    load_heads(tmp_path, load(tmp_path / "backbone").model)
    with pytest.raises(CheckpointError, match="backbone of exit heads"):
        load_heads(tmp_path, load(tiny_checkpoint).model)
    notes = json.loads((tmp_path / "add_on.json").read_text(encoding="utf-8"))["notes"]
    expected = {"objective": "next", "exits": [1], "layer_dropout": 0.2, "fit": 3, "rate": 0.001}
    assert notes == expected | {"steps": 12, "tokens_a_step": 128}


def test_one_exit_and_its_backbone_for_self_speculation(text_options, tiny_checkpoint, tmp_path):
    options = [*text_options, *SMALL, "--device", "cpu", "--layer-dropout", "0", "--exits", "1"]
    options += ["--objective", "last", "--exit-weight", "2", "--rate", "0.003"]
    assert main([*options, "--model", str(tiny_checkpoint), "--out", str(tmp_path)]) == 0
    backbone = load(tmp_path / "backbone").model
    assert load_heads(tmp_path, backbone).head(1).residual.weight.any()
    notes = json.loads((tmp_path / "add_on.json").read_text(encoding="utf-8"))["notes"]
    assert (notes["objective"], notes["exit_weight"], notes["rate"]) == ("last", 2.0, 0.003)


def test_training_starts_where_it_is_told(trained, tmp_path):
    options, _, _ = trained
    starts = []
    for count in ("0", "3"):
        ended = Trained(12, 1.0, 1.0)
        with mock.patch.object(exits, "train", return_value=ended) as run:
            assert main([*options[:-1], str(tmp_path / count), "--fit", count]) == 0
        starts.append(run.call_args.args[2].head(1).residual.weight.any().item())
    assert starts == [False, True]


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("windows must be at least 1, got 0", ["--windows", "0"]),
        ("fit must be at least 0, got -1; 0 starts from", ["--fit", "-1"]),
        ("batch_size must be at least 1, got 0", ["--batch-size", "0"]),
        ("sequence_length must be at most the model's context, 64, got 65", ["--length", "65"]),
        ("layer_dropout must be in [0, 1), got 1.0", ["--layer-dropout", "1"]),
        ("exit_weight must be above 0 and finite, got 0.0", ["--layer-dropout", "0", "--exit-weight", "0"]),
        ("exit_weight must come with --layer-dropout, got 1.0 alone", ["--exit-weight", "1"]),
        ("an exit must be at most 1, got 2", ["--exits", "1,2"]),
        ("exits must be named once each, got [1, 1]", ["--exits", "1,1"]),
        ("matrix_lr must be above 0 and finite, got 0.0", ["--rate", "0"]),
        ("no model or folder named 'nowhere'", ["--model", "nowhere"]),
    ],
)
def test_wrong_options_end_with_one_line(text_options, tiny_checkpoint, tmp_path, capsys, message, changes):
    options = [*text_options, *SMALL, "--model", str(tiny_checkpoint), "--out", str(tmp_path / "out")]
    assert main([*options, *changes]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors, errors
    assert not (tmp_path / "out").exists()


ONE_GRAPH = """
import torch
from llmcourse import pretrained
from llmcourse.early_exit import ExitHeads
from llmcourse.training.exit_loss import ExitLoss

loss_of, rows = ExitLoss(ExitHeads(pretrained.load("draft").model), "last"), torch.arange(18).view(2, 9)
found = torch.compile(loss_of, backend="eager", fullgraph=True)(rows)
assert torch.equal(found, loss_of(rows)), (found, loss_of(rows))
"""


def test_the_loss_compiles_as_one_graph():
    """In a program of its own, where no test looks at shapes in between."""
    subprocess.run([sys.executable, "-c", ONE_GRAPH], check=True, cwd=ROOT, timeout=300)
