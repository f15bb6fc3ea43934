"""The beam tree: where each candidate stands, and which path is the best."""

import math

import pytest
import torch

from llmcourse.decoding.beam import beam_search
from llmcourse.figures.beam_tree import beam_tree, plot_beam_tree

# Probabilities of the next token after each token: greedy search starts with 1, the best text with 2.
TABLE = {
    0: [0.0, 0.5, 0.4, 0.1],
    1: [0.0, 0.4, 0.3, 0.3],
    2: [0.0, 0.05, 0.05, 0.9],
    3: [0.0, 0.3, 0.3, 0.4],
}


class Table:
    """A source of logits that looks at the last token alone."""

    vocab_size, max_length, eos_token_ids, device = 4, 64, (), torch.device("cpu")

    def start(self, prompts, capacity):
        self.last = torch.tensor([prompt[-1] for prompt in prompts])
        return self.logits()

    def step(self, tokens):
        self.last = tokens
        return self.logits()

    def reorder(self, rows):
        self.last = self.last[rows]

    def logits(self):
        return torch.tensor([TABLE[token] for token in self.last.tolist()]).log()


def search(num_beams=2, steps=2):
    return beam_search(Table(), [0], num_beams=num_beams, max_new_tokens=steps)


def test_two_beams_and_two_steps():
    tree = beam_tree(search(), "w{}".format)
    assert tree.best_tokens == (2, 3)
    assert tree.best_log_prob == pytest.approx(math.log(0.4 * 0.9))
    first = [(box.row, box.label, box.fate, box.best) for box in tree.boxes if box.step == 0]
    assert first == [(0, "w1", "kept", False), (1, "w2", "kept", True), (2, "w3", "cut", False)]
    best = next(box for box in tree.boxes if box.step == 1 and box.best)
    assert (best.row, best.label, best.fate) == (0, "w3", "finished")
    assert best.probability == pytest.approx(0.9)
    assert next(box for box in tree.boxes if box.node == best.parent).label == "w2"


def test_half_way_the_likeliest_beam_leads():
    tree = beam_tree(search(), "w{}".format, last_step=0)
    assert tree.best_tokens == (1,)
    assert {box.step for box in tree.boxes} == {0}
    assert (tree.columns, tree.rows) == (2, 4)  # room for the whole search: no jump between steps


def test_long_searches_show_their_last_columns():
    tree = beam_tree(search(steps=9), str, columns=4)
    assert (tree.first_step, tree.last_step, tree.columns) == (5, 8, 4)
    assert len(tree.best_tokens) == 9


@pytest.mark.parametrize("step", [-1, 2])
def test_steps_that_the_search_has_not_are_refused(step):
    with pytest.raises(ValueError, match=rf"last_step must be in \[0, 1\], got {step}; None shows"):
        beam_tree(search(), str, last_step=step)


@pytest.mark.parametrize(("num_beams", "steps", "last"), [(1, 1, None), (2, 2, 0), (3, 9, None)])
def test_the_tree_is_drawn(num_beams, steps, last):
    tree = beam_tree(search(num_beams, steps), "明月{}".format, last)
    picture = plot_beam_tree(tree, "After “春”")
    boxes = [patch for patch in picture.axes[0].patches if patch.get_zorder() == 3]
    assert len(boxes) == len(tree.boxes)
    assert sum(patch.get_linewidth() == 2.2 for patch in boxes) == sum(box.best for box in tree.boxes)
    picture.png(1.0)
