"""A window gives the model's own logits at every place, wherever its rows stand."""

import pytest
import torch

from llmcourse.decoding.engine.prefill import prefill
from llmcourse.decoding.engine.step import StepState
from llmcourse.decoding.engine.window import Window
from llmcourse.model import Decoder, DecoderConfig

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
@pytest.mark.parametrize("back", [0, 1])
def test_logits_are_those_of_the_whole_text(switches, back):
    model = tiny(**SWITCHES[switches])
    state = StepState(model, 3, 20)
    prefill(state, PROMPTS)
    lengths = state.positions + 1
    drafts = torch.tensor([[20, 21], [30, 31], [40, 41]])
    state.text.scatter_(1, lengths[:, None] + torch.arange(2), drafts)
    state.positions += 1  # the first of them is read last in one case, and second in the other
    window = Window(state, 2, back=back)
    for _ in range(2):  # reading anew changes nothing
        window.read()
        assert torch.equal(state.positions, lengths)
        for row, prompt in enumerate(PROMPTS):
            text = [*prompt, *drafts[row].tolist()]
            begin = len(prompt) - back
            assert window.tokens[row].tolist() == text[begin : begin + 2]
            truth = model(torch.tensor([text]))[0, begin : begin + 2]
            torch.testing.assert_close(window.logits[row], truth)


def test_tokens_that_are_read_anew_replace_those_before():
    model = tiny()
    state = StepState(model, 1, 20)
    prefill(state, [[1, 2, 3]])
    window = Window(state, 3)
    state.positions += 1
    for drafts in ([50, 51, 52], [60, 61, 62]):
        state.text[0, 3:6] = torch.tensor(drafts)
        window.read()
    torch.testing.assert_close(window.logits[0], model(torch.tensor([[1, 2, 3, 60, 61, 62]]))[0, 3:])
