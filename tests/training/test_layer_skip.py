"""Backbone and exits trained together: losses by hand, layers skipped, what is trained and compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from llmcourse.early_exit import ExitHeads
from llmcourse.training.layer_skip import JointRecipe, LayerSkip, exit_weights, layers_kept, skip_chances
from llmcourse.training.optimizer import build_optimizers, set_rates
from tests.early_exit.tiny import random_heads
from tests.speculative.tiny import tiny_decoder
from tests.training.tiny import tiny_recipe

ROOT = Path(__file__).parents[2]
ROWS = torch.tensor([[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]])


def loss_at(skip: LayerSkip, step: int = 0) -> torch.Tensor:
    return skip(ROWS, *skip.turn(step, len(ROWS)))


def logits_and_targets(heads):
    return [each.flatten(0, 1) for each in heads.logits(ROWS[:, :-1])], ROWS[:, 1:].flatten()


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


def test_exits_that_are_named_take_turns_among_themselves():
    on = [{layer for layer, w in enumerate(exit_weights(5, 0.5, 2, step, [1, 3])) if w} for step in (0, 1)]
    assert on == [{0, 4}, {2, 4}]
    assert exit_weights(5, 0.5, 2, 0, [1, 3])[0] == pytest.approx(0.5 / 7.5)


def test_layer_skip_is_its_definition_and_trains_the_backbone():
    heads = random_heads()
    skip = LayerSkip(heads, JointRecipe(0.0, rotation=1))
    every, targets = logits_and_targets(heads)
    weights = exit_weights(4, 0.5, 1, 0)
    wanted = sum(w * F.cross_entropy(each, targets) for w, each in zip(weights, every, strict=True))
    loss = loss_at(skip)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert heads.backbone.model.layers[0].mlp.up_proj.weight.grad.any()
    assert heads.head(1).residual.weight.grad.any()


def test_a_turn_trains_every_second_exit():
    heads = random_heads()
    skip = LayerSkip(heads, JointRecipe(0.0))
    every, targets = logits_and_targets(heads)
    for step in (0, 1):
        weights = exit_weights(4, 0.5, 2, step)
        wanted = sum(w * F.cross_entropy(each, targets) for w, each in zip(weights, every, strict=True))
        torch.testing.assert_close(loss_at(skip, step), wanted)


def test_a_skipped_layer_leaves_a_sequence_as_it_was():
    heads = random_heads()
    skip = LayerSkip(heads, JointRecipe(0.9, rotation=1))
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
    torch.testing.assert_close(loss_at(skip), total)


class TestOneExitForSelfSpeculation:
    RECIPE = JointRecipe(0.0, "last", weight=0.7)

    def test_its_loss_is_that_of_the_text_and_a_divergence(self):
        heads = random_heads()
        (first, second, _, last), targets = logits_and_targets(heads)
        p = last.softmax(-1)
        kl = [(p * (p.log() - each.log_softmax(-1))).sum(-1).mean() for each in (first, second)]
        wanted = F.cross_entropy(last, targets) + 0.7 * sum(kl) / 2
        for step in (0, 1):
            torch.testing.assert_close(loss_at(LayerSkip(heads, self.RECIPE, [1, 2]), step), wanted)
        assert min(kl) > 0.01

    def test_the_last_layer_learns_the_text_alone(self):
        """The exit's term reaches what lies before it, its head and the vocabulary, and nothing behind."""
        heads = random_heads()
        loss_at(LayerSkip(heads, self.RECIPE, [1])).backward()
        ours = [layer.mlp.down_proj.weight.grad for layer in heads.backbone.model.layers]
        (*_, last), targets = logits_and_targets(heads)
        layers = heads.backbone.model.layers
        weights = [layer.mlp.down_proj.weight for layer in layers]
        text = torch.autograd.grad(F.cross_entropy(last, targets), weights)
        same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, text, strict=True)]
        assert same == [False, True, True, True]
        assert [head.residual.weight.grad is not None for head in heads.heads] == [True, False, False]

    def test_its_exit_follows_more_closely_in_the_same_steps(self):
        """Than by LayerSkip's own weights: both start alike and see the same rows."""
        rows = torch.randint(40, (8, 17), generator=torch.Generator().manual_seed(0))
        agreement = {}
        for name, how, exits in (("ours", self.RECIPE, [1]), ("LayerSkip", JointRecipe(0.1), None)):
            heads = ExitHeads(tiny_decoder(num_layers=4))
            skip, recipe = LayerSkip(heads, how, exits), tiny_recipe(steps=80, warmup=1)
            optimizers = build_optimizers(skip, recipe)
            for step in range(80):
                set_rates(optimizers, step, recipe)
                skip(rows, *skip.turn(step, len(rows))).backward()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            first, *_, last = (each.argmax(-1) for each in heads.logits(rows))
            agreement[name] = (first == last).double().mean().item()
        assert agreement["ours"] > agreement["LayerSkip"] + 0.2, agreement


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropouts_that_are_no_chance_are_refused(dropout):
    with pytest.raises(ValueError, match=r"layer_dropout must be in \[0, 1\)"):
        JointRecipe(dropout)


@pytest.mark.parametrize("weight", [0, -1.0, float("inf"), float("nan")])
def test_weights_that_are_none_are_refused(weight):
    with pytest.raises(ValueError, match="exit_weight must be above 0 and finite"):
        JointRecipe(weight=weight)


GRAPHS = """
import torch
from llmcourse.early_exit import ExitHeads
from llmcourse.pretrained import find_checkpoint
from llmcourse.training.backbone import load_backbone
from llmcourse.training.layer_skip import JointRecipe, LayerSkip

graphs, rows = [], torch.arange(36).view(4, 9)


def counted(graph, inputs):
    graphs.append(graph)
    return graph


def number_of_graphs(recipe, exits):
    torch.compiler.reset()
    graphs.clear()
    skip = LayerSkip(ExitHeads(load_backbone(find_checkpoint("draft"), torch.device("cpu"))), recipe, exits)
    compiled = torch.compile(skip, backend=counted, fullgraph=True)
    for step in range(6):
        turn = skip.turn(step, len(rows))
        assert step < skip.turns or turn.on == skip.turn(step - skip.turns, len(rows)).on
        assert torch.allclose(compiled(rows, *turn), skip(rows, *turn), rtol=1e-5), step
    assert len(graphs) == skip.turns
    return len(graphs)


found = number_of_graphs(JointRecipe(0.4), None), number_of_graphs(JointRecipe(0.0, "last", 1.0), [1])
assert found == (2, 1), found
"""


def test_steps_compile_as_one_graph_for_every_set_of_exits():
    """In a program of its own, where no test looks at shapes in between: LayerSkip's two turns, and one."""
    subprocess.run([sys.executable, "-c", GRAPHS], check=True, cwd=ROOT, timeout=300)
