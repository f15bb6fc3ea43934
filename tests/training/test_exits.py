"""Training exit heads: the losses by hand, the program on a tiny backbone, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from llmcourse.early_exit import ExitHeads, load_heads
from llmcourse.pretrained import CheckpointError, load
from llmcourse.training import exits
from llmcourse.training.exit_loss import ExitLoss, LayerSkip, exit_weights, layers_kept, skip_chances
from llmcourse.training.exits import main
from llmcourse.training.optimizer import build_optimizers, set_rates
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


@pytest.mark.parametrize("objective", ["last", "next"])
def test_only_the_heads_learn(objective):
    heads = ExitHeads(tiny_decoder(num_layers=3))
    ExitLoss(heads, objective)(ROWS).backward()
    assert all(p.grad is not None and p.grad.any() for p in heads.parameters())
    assert all(p.grad is None for p in heads.backbone.parameters())


def test_deeper_layers_are_skipped_more_often():
    assert skip_chances(5, 0.2) == pytest.approx([0.2 * (2 ** (layer / 4) - 1) for layer in range(5)])
    assert skip_chances(6, 0.3)[0] == 0 and skip_chances(6, 0.3)[-1] == pytest.approx(0.3)


def test_layers_are_skipped_as_often_as_said():
    """400 × 50 draws a layer: six standard deviations, which chance passes less than once in 10⁸ layers."""
    chances = skip_chances(4, 0.4)
    shares = torch.stack([layers_kept(50, chances, step).double().mean(1) for step in range(400)]).mean(0)
    bound = [6 * (p * (1 - p) / 20_000) ** 0.5 + 1e-12 for p in chances]
    assert all(abs(1 - p - s) <= b for p, s, b in zip(chances, shares.tolist(), bound, strict=True))
    assert abs(1 - 0.3 - shares[-1].item()) > bound[-1], "another chance is noticed"
    assert torch.equal(layers_kept(50, chances, 3), layers_kept(50, chances, 3))


def test_weights_of_exits_rise_and_take_turns():
    weights = exit_weights(5, 0.5, 1, 0)
    assert (
        sum(weights) == pytest.approx(1) and weights[0] == weights[1] < weights[2] < weights[3] < weights[4]
    )
    raw = [0.5, 0.5, 1.5, 3.0, 4 + 0.5 * 6]
    assert weights == pytest.approx([w / sum(raw) for w in raw])
    on = [{layer for layer, w in enumerate(exit_weights(5, 0.5, 2, step)) if w} for step in (0, 1, 2)]
    assert on == [{0, 2, 4}, {1, 3, 4}, {0, 2, 4}]


def test_layer_skip_is_its_definition_and_trains_the_backbone():
    heads = random_heads().requires_grad_(True)
    skip = LayerSkip(heads, 0.0, rotation=1)
    skip.requires_grad_(True)
    every, targets = logits_and_targets(heads)
    weights = exit_weights(4, 0.5, 1, 0)
    wanted = sum(w * F.cross_entropy(each, targets) for w, each in zip(weights, every, strict=True))
    loss = skip(ROWS)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert heads.backbone.model.layers[0].mlp.up_proj.weight.grad.any() and skip.step == 1
    assert heads.head(1).residual.weight.grad.any()


def test_a_skipped_layer_leaves_a_sequence_as_it_was():
    heads = random_heads()
    skip = LayerSkip(heads, 0.9, rotation=1)
    kept = layers_kept(2, skip_chances(4, 0.9), 0)
    assert kept[0].all() and not kept.all(), "the seed skips some"
    x, context = heads.backbone.begin(ROWS[:, :-1])
    total = torch.zeros(())
    for number, layer in enumerate(heads.backbone.model.layers):
        rows = [layer(x, number, context)[b] if kept[number, b] else x[b] for b in range(2)]
        x = torch.stack(rows)
        read = heads(number + 1, x) if number < 3 else heads.backbone.lm_head(heads.backbone.model.norm(x))
        weight = exit_weights(4, 0.5, 1, 0)[number]
        total = total + weight * F.cross_entropy(read.flatten(0, 1), ROWS[:, 1:].flatten())
    torch.testing.assert_close(skip(ROWS), total)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropouts_that_are_no_chance_are_refused(dropout):
    with pytest.raises(ValueError, match=r"layer_dropout must be in \[0, 1\)"):
        LayerSkip(random_heads(), dropout)


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


def test_out_of_time_and_on_again_is_one_run(trained, tmp_path, tiny_checkpoint, capsys):
    options, out, _ = trained
    again = [*options[:-1], str(tmp_path)]
    assert main([*again, "--minutes", "1e-9"]) == 3
    assert capsys.readouterr().err.endswith("the time is up; start again with the same arguments to go on\n")
    assert main(again) == 0
    assert (tmp_path / "add_on.safetensors").read_bytes() == (out / "add_on.safetensors").read_bytes()


def test_another_objective_in_a_used_folder_is_refused(trained, capsys):
    options, _, _ = trained
    assert main([*options, "--objective", "next"]) == 2
    assert "was made with another recipe (name was exits, last, fit 3, on" in capsys.readouterr().err


def test_layer_dropout_trains_a_backbone_for_its_heads(text_options, tiny_checkpoint, tmp_path):
    options = [*text_options, *SMALL, "--device", "cpu", "--layer-dropout", "0.2"]
    assert main([*options, "--model", str(tiny_checkpoint), "--out", str(tmp_path)]) == 0
    load_heads(tmp_path, load(tmp_path / "backbone").model)
    with pytest.raises(CheckpointError, match="backbone of exit heads"):
        load_heads(tmp_path, load(tiny_checkpoint).model)


def test_training_starts_where_it_is_told(trained, tmp_path):
    options, _, _ = trained
    starts = []
    for count in ("0", "3"):
        with mock.patch.object(exits, "train", return_value=True) as run:
            assert main([*options[:-1], str(tmp_path / count), "--fit", count]) == 0
        starts.append(run.call_args.args[2].head(1).residual.weight.any().item())
    assert starts == [False, True]


def test_an_interrupt_says_how_to_go_on(trained, capsys):
    options, _, _ = trained
    with mock.patch.object(exits, "train", side_effect=KeyboardInterrupt):
        assert main(options) == 130
    assert capsys.readouterr().err == "interrupted; start again with the same arguments to go on\n"


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("windows must be at least 1, got 0", ["--windows", "0"]),
        ("fit must be at least 0, got -1; 0 starts from", ["--fit", "-1"]),
        ("batch_size must be at least 1, got 0", ["--batch-size", "0"]),
        ("sequence_length must be at most the model's context, 64, got 65", ["--length", "65"]),
        ("layer_dropout must be in [0, 1), got 1.0", ["--layer-dropout", "1"]),
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
