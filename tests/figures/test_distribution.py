"""The next-token figure: its numbers, and that the drawing shows them."""

import math
import warnings

import pytest
import torch

from llmcourse.decoding import History, SamplingParams, apply
from llmcourse.figures.distribution import DistributionPlot, describe, next_token, plot_next_token

# The lecture's table, "I am sleepy. I start a pot of ___".
POT = {"coffee": 0.681, "water": 0.119, "tea": 0.057, "rice": 0.017, "chai": 0.012, "happy": 4.3e-6}
WORDS = [*POT, "all else"]
LOGITS = torch.tensor([*POT.values(), 1 - sum(POT.values())]).log()
LOGITS[-1] = -math.inf  # out of play here
LOGITS -= LOGITS.logsumexp(0)


def cut(**settings):
    history = History.from_prompts([[0]])
    return apply(SamplingParams(**settings).processors(), LOGITS[None], history)[0]


def test_top_k_of_the_lectures_table():
    data = next_token(LOGITS, cut(top_k=3), WORDS.__getitem__, rows=5)
    total = sum(POT.values())
    assert data.labels == ("coffee", "water", "tea", "rice", "chai")
    assert data.kept == (True, True, True, False, False)
    assert data.num_kept == 3 and data.vocab_size == 7
    assert data.mass_kept == pytest.approx((0.681 + 0.119 + 0.057) / total)
    assert data.raw[0] == pytest.approx(0.681 / total)
    assert data.processed[:3] == pytest.approx([p / 0.857 for p in (0.681, 0.119, 0.057)])
    assert data.processed[3:] == (0, 0)
    assert data.cumulative[2] == pytest.approx(data.mass_kept)
    assert (data.others_kept, data.others_cut) == (0, 2)
    assert data.others_raw == pytest.approx(4.3e-6 / total, rel=1e-3)


def test_entropies_are_in_nats():
    uniform = torch.zeros(8)
    half = uniform.clone()
    half[4:] = -math.inf
    data = next_token(uniform, half, str, rows=3)
    assert data.raw_entropy == pytest.approx(math.log(8))
    assert data.entropy == pytest.approx(math.log(4))
    assert (data.others_kept, data.others_cut) == (1, 4)
    assert data.others_processed == pytest.approx(0.25)
    assert data.token_ids == (0, 1, 2)  # of equals the lower id first


def test_the_summary_and_the_text_alternative_say_what_is_seen():
    data = next_token(LOGITS, cut(top_k=1), WORDS.__getitem__, rows=3)
    assert data.summary.startswith("1 of 7 tokens kept · 76.9% of the mass · entropy ")
    assert data.summary.endswith("→ 0.00 nats")
    assert "coffee 100.0%, water cut, tea cut" in describe(data, "A title")


def test_improbable_is_not_cut():
    data = next_token(LOGITS - 900, LOGITS - 900, WORDS.__getitem__)
    assert data.num_kept == 6 and data.raw[0] == pytest.approx(data.processed[0])


def test_bars_have_the_lengths_of_the_data():
    data = next_token(LOGITS, cut(top_p=0.8), WORDS.__getitem__, rows=5)
    plot = DistributionPlot(5)
    plot.update(data, top_p=0.8, chosen=1)
    widths = {
        kind: [path.vertices[:, 0].max() for path in bars.get_paths()] for kind, bars in plot._bars.items()
    }
    kept = [i for i in range(5) if data.kept[i]]
    assert widths["after processing"] == pytest.approx([data.processed[i] for i in kept])
    assert widths["model alone"] == pytest.approx([data.raw[i] for i in kept])
    assert widths["cut"] == pytest.approx([data.raw[i] for i in range(5) if i not in kept])
    assert list(plot._chosen.get_ydata()) == [1]
    assert plot._limit.get_visible() and list(plot._limit.get_xdata()) == [0.8, 0.8]


def test_redrawing_leaves_nothing_of_the_last_picture():
    """A picture that followed many sliders has the pixels of one that is new."""
    plot = DistributionPlot(5)
    last = {}
    several = ({"top_p": 0.5}, {"temperature": 1.8}, {"top_p": 0.9}, {"top_k": 4}, {"top_k": 3})
    for settings in several:
        data = next_token(LOGITS, cut(**settings), WORDS.__getitem__, rows=5)
        last = {"top_p": settings.get("top_p"), "chosen": 0}
        plot.update(data, "A title", **last).png(1.0)
    fresh = plot_next_token(data, "A title", **last)
    assert plot.figure.png(1.0) == fresh.png(1.0)


@pytest.mark.parametrize("label", ["$", "$x$", "$\\frac{$", "月", "\x00\x07", "🙂", "<AE>", "a" * 99, ""])
def test_any_label_can_be_drawn(label):
    data = next_token(LOGITS, LOGITS, lambda _: label, rows=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_next_token(data, f"after “{label}”").png(1.0)


def test_fewer_tokens_than_rows_and_a_choice_that_is_not_listed():
    data = next_token(torch.zeros(3), torch.zeros(3), str)
    assert (len(data.labels), data.others_cut, data.others_raw) == (3, 0, 0)
    plot = DistributionPlot(16)
    plot.update(data, chosen=77).png(1.0)  # no token of this vocabulary
    assert list(plot._chosen.get_ydata()) == [] and not plot._chosen_name.get_visible()
    assert [text.get_text() for text in plot._labels[3:]] == [""] * 14


def test_the_axis_keeps_still_while_probabilities_change_a_little():
    plot, limits = DistributionPlot(5), set()
    for temperature in (0.98, 1.0, 1.02):
        plot.update(next_token(LOGITS, cut(temperature=temperature), WORDS.__getitem__, rows=5))
        limits.add(plot.bars.get_xlim())
    assert len(limits) == 1


def test_a_drawn_token_that_is_not_listed_is_among_the_others():
    plot = DistributionPlot(5)
    plot.update(next_token(LOGITS, LOGITS, WORDS.__getitem__, rows=5), chosen=5)
    assert list(plot._chosen.get_ydata()) == [5] and plot._chosen_name.get_visible()
