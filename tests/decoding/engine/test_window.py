"""A window gives the model's own logits at every place, wherever its rows stand."""

import pytest
import torch

from llmcourse.decoding.engine.prefill import prefill
from llmcourse.decoding.engine.step import StepState
from llmcourse.decoding.engine.window import Window
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.speculative.medusa.reading import mask_of
from llmcourse.speculative.tree import DraftTree, read_tree

SWITCHES = {
    "grouped heads": {},
    "biases and an untied head": {"attention_bias": True, "output_bias": True, "tie_word_embeddings": False},
    "norms on the heads": {"qk_norm": True},
}
PROMPTS = [[5, 6, 7, 8, 9, 10], [1, 2], [9]]


def tiny(**changes) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(100, 32, 48, 2, 4, 2, 8, 64, **changes)
    model = Decoder(config).double().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases and norms too, or they would not show
    return model


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("num_drafts", [0, 1, 2])
def test_logits_are_those_of_the_whole_text(switches, num_drafts):
    model = tiny(**SWITCHES[switches])
    state = StepState(model, 3, 20)
    prefill(state, PROMPTS)
    drafts = torch.tensor([[20, 21], [30, 31], [40, 41]])[:, :num_drafts]
    state.text.scatter_(1, state.positions[:, None] + 1 + torch.arange(num_drafts), drafts)
    state.positions += num_drafts
    last = state.positions.clone()
    window = Window(state, num_drafts + 1)
    for _ in range(2):  # reading anew changes nothing
        window.read()
        assert torch.equal(state.positions, last)
        for row, prompt in enumerate(PROMPTS):
            text = [*prompt, *drafts[row].tolist()]
            begin = len(prompt) - 1
            assert window.tokens[row].tolist() == text[begin:]
            truth = model(torch.tensor([text]))[0, begin:]
            torch.testing.assert_close(window.logits[row], truth)


def test_tokens_that_are_read_anew_replace_those_before():
    model = tiny()
    state = StepState(model, 1, 20)
    prefill(state, [[1, 2, 3]])
    window = Window(state, 3)
    state.positions += 3
    for drafts in ([50, 51, 52], [60, 61, 62]):
        state.text[0, 3:6] = torch.tensor(drafts)
        window.read()
    torch.testing.assert_close(window.logits[0], model(torch.tensor([[1, 2, 3, 60, 61, 62]]))[0, 3:])


@pytest.mark.parametrize("switches", SWITCHES)
def test_logits_of_a_tree_are_those_of_each_path_alone(switches):
    model, tree = tiny(**SWITCHES[switches]), DraftTree([-1, -1, 0, 0, 1, 4])
    state = StepState(model, 3, 20)
    prefill(state, PROMPTS)
    nodes = torch.randint(0, 100, (3, len(tree)))
    state.text.scatter_(1, state.positions[:, None] + 1 + torch.arange(len(tree)), nodes)
    state.positions += len(tree)
    window = Window(state, len(tree) + 1, mask_of(tree))
    window.read()
    torch.testing.assert_close(window.logits, read_tree(model, PROMPTS, nodes, tree))
