"""What methods leave of each layer's error: bars are shares of rounding's loss."""

from dataclasses import dataclass

import pytest
import torch

from llmcourse.figures.layer_errors import MOST_LAYERS, plot_layer_errors, shares, short, whole_share
from llmcourse.quantization.gptq import GPTQSettings, gptq


@dataclass(frozen=True)
class Lost:
    loss: float
    rounding_loss: float


NAMES = [f"model.layers.{i}.{part}" for i in range(2) for part in ("self_attn.q_proj", "mlp.down_proj")]
GPTQ = dict(zip(NAMES, (Lost(2.0, 4.0), Lost(30.0, 100.0), Lost(0.0, 0.0), Lost(1.0, 1.0)), strict=True))
AWQ = {name: Lost(0.9 * one.rounding_loss, one.rounding_loss) for name, one in GPTQ.items()}


def test_shares_are_of_roundings_loss():
    assert list(shares(GPTQ).values()) == [0.5, 0.3, 1.0, 1.0]
    assert whole_share(GPTQ) == 33 / 105
    assert whole_share({"a": Lost(0.0, 0.0)}) == 1


def test_names_are_short():
    assert [short(name) for name in NAMES] == ["0 q", "0 down", "1 q", "1 down"]
    assert short("lm_head") == "lm_head"


def test_bars_are_losses_and_shares():
    picture = plot_layer_errors({"GPTQ": GPTQ, "AWQ": AWQ})
    top, bottom = picture.axes
    ends = [bar.get_y() + bar.get_height() for bar in top.patches]
    assert ends == pytest.approx([4, 100, 0.5, 1])  # where nothing was lost, the bar has no height
    assert top.patches[2].get_height() == 0
    heights = [bar.get_height() for bar in bottom.patches]
    assert heights == pytest.approx([0.5, 0.3, 1.0, 1.0, 0.9, 0.9, 1.0, 0.9])
    assert [label.get_text() for label in bottom.get_xticklabels()] == ["0 q", "0 down", "1 q", "1 down"]
    assert "GPTQ leaves 31.4% of what rounding loses over 4 layers: 30.0% at best" in picture.alt
    assert [text.get_text() for text in bottom.get_legend().texts] == ["GPTQ: 31% in all", "AWQ: 90% in all"]
    picture.png(1.0)


def test_it_draws_what_gptq_returns():
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(64, 16, generator=generator), torch.randn(8, 16, generator=generator)
    result = gptq(w, 2 * x.T @ x, GPTQSettings(bits=3, group_size=16))
    picture = plot_layer_errors({"GPTQ": {"model.layers.0.mlp.up_proj": result}})
    assert picture.axes[1].patches[0].get_height() == result.loss / result.rounding_loss < 1


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({}, "methods must be 1 to 3, got 0"),
        (dict.fromkeys("abcd", GPTQ), "methods must be 1 to 3, got 4"),
        ({"a": GPTQ, "b": {}}, "methods must have the same layers in one order"),
        ({"a": {}}, f"layers must be 1 to {MOST_LAYERS}, got 0"),
        ({"a": {str(n): Lost(1.0, 1.0) for n in range(65)}}, f"layers must be 1 to {MOST_LAYERS}, got 65"),
    ],
)
def test_what_does_not_fit_is_refused(methods, message):
    with pytest.raises(ValueError, match=message):
        plot_layer_errors(methods)
