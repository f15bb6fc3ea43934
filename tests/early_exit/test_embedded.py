"""The exits inside the package: they are of the base model, and better than its own head on early layers."""

import torch

from llmcourse.early_exit import ExitHeads, load_heads, read_texts
from llmcourse.pretrained import CHECKPOINTS, load

TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in "
    "want of a wife. However little known the feelings or views of such a man may be on his first entering a "
    "neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he is "
    "considered as the rightful property of some one or other of their daughters."
)


def test_they_are_of_the_base_model_and_have_learnt():
    model, tokenizer = load("base")
    heads = load_heads("base", model)
    assert sum(file.stat().st_size for file in (CHECKPOINTS / "base" / "exits").iterdir()) < 1.2e6
    assert all(torch.isfinite(p).all() for p in heads.parameters())
    ids = [0, *tokenizer.encode(TEXT)]
    trained, untrained = (read_texts(h, [ids]).agreement() for h in (heads, ExitHeads(model)))
    assert trained[:-1].mean() > 1.3 * untrained[:-1].mean() and trained[-2] > trained[0] > untrained[0]
