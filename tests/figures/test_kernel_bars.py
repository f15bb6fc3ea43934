"""Recorded kernels: bars, limits and peers are those of the rows, and missing rows are said."""

import pytest

from llmcourse.figures.kernel_bars import (
    CHUNKED_PREFILL,
    DECODE_ATTENTION,
    FLASH_BACKWARD,
    FLASH_FORWARD,
    LABELS,
    PAGED_ATTENTION,
    SERVING,
    compare_limits,
    differences,
    labels_of,
    limits_of,
    origin,
    plot_kernels,
    spelled,
)
from llmcourse.figures.recorded import TITLES, all_of, told
from tools import readme


def row(name, value=500.0, limit=700.0, peer=480.0, **changes):
    found = {"name": name, "value": value, "unit": "TFLOP/s", "device": "NVIDIA H200", "date": "2026-11-28"}
    found |= {"limit": limit, "limit_name": "bf16 matmul", "ratio_limit": limit and value / limit}
    found |= {"peer": peer and "cuDNN", "peer_value": peer, "ratio_peer": peer and value / peer}
    return found | changes


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_names_are_those_of_the_benchmarks():
    assert "flash_fwd_d128_s16384_full" in FLASH_FORWARD and "flash_bwd_d64_s4096_causal" in FLASH_BACKWARD
    assert "decode_attention_b1_s32768" in DECODE_ATTENTION and "paged_attention_b64_s4096" in PAGED_ATTENTION
    assert (len(FLASH_FORWARD), len(FLASH_BACKWARD), len(DECODE_ATTENTION)) == (8, 8, 3)


def test_what_all_names_share_is_left_out_of_labels():
    assert list(differences(FLASH_FORWARD).values())[:2] == ["d64 s4096 full", "d64 s4096 causal"]
    assert differences(["serve_a", "serve_a_vs_b"]) == {"serve_a": "a", "serve_a_vs_b": "a vs b"}
    assert differences(["serve_x"]) == {"serve_x": "serve x"}
    rows = [row("f_a"), row("f_a", device="A100"), row("f_b")]
    assert labels_of(rows) == ["a, NVIDIA H200", "a, A100", "b, NVIDIA H200"]


def test_sizes_are_spelled_out():
    assert spelled("d64 s16384 causal") == "heads of 64, 16,384 tokens, causal"
    assert spelled("b1 s32768") == "batch 1, 32,768 tokens"
    assert spelled("256 vs transformers") == "256 vs transformers"
    assert labels_of([row(name) for name in FLASH_FORWARD])[0] == "heads of 64, 4,096 tokens, full"


def serving():
    first, second = (row(name, unit="tok/s") for name in SERVING)
    first |= {"limit_name": "the roofline's prediction for the same schedule"}
    first |= {"peer": "traditional batching, one padded batch, the same kernels"}
    second |= {"limit": None, "ratio_limit": None, "peer": "transformers generate_batch, paged|sdpa"}
    return [first, second]


def test_serving_is_called_what_it_was():
    """A row beside transformers is of 64 requests, whatever its name begins with."""
    assert labels_of(serving()) == ["256 requests", "64 requests"]
    assert labels_of([row(name) for name in CHUNKED_PREFILL]) == [
        "with long documents",
        "prompts as they are",
    ]
    alt = plot_kernels(serving(), "All at once").alt
    assert "Serving 64 requests, Qwen3-0.6B's shape 500 tok/s" in alt and "serve_" not in alt
    assert told(serving()[1]).startswith("Serving 64 requests, Qwen3-0.6B's shape: 500 tok/s on NVIDIA H200")
    table = {names[0]: line for line, names in readme.LINES if len(names) == 1}
    assert table[SERVING[0]] == TITLES[SERVING[0]]
    assert table[SERVING[1]].removeprefix("The same, ") == LABELS[SERVING[1]]
    assert set(LABELS) == set(TITLES) == {*SERVING, *CHUNKED_PREFILL}


def test_a_long_subtitle_is_wrapped_between_words_and_all_of_it_is_seen():
    picture = plot_kernels(serving(), "All at once")
    subtitle = next(text for text in picture.texts if "recorded on" in text.get_text())
    words = " ".join(subtitle.get_text().split())
    assert words.endswith(
        "◆ traditional batching, one padded batch, the same kernels or "
        "◆ transformers generate_batch, paged|sdpa"
    )
    assert "…" not in words and subtitle.get_text().count("\n") >= 1
    picture.png(1.0)
    renderer, (axes,) = picture.canvas.get_renderer(), picture.axes
    box = subtitle.get_window_extent(renderer)
    assert box.x1 <= picture.bbox.x1 and box.y0 > axes.bbox.y1


def test_limits_that_differ_are_both_said():
    forward = [row("f_a", limit=680.2), row("f_b", limit=681.0), row("f_c", limit=None, peer=None)]
    backward = [row("b_a", limit=787.3)]
    assert limits_of(forward) == "680" and limits_of(forward + backward) == "680 to 787"
    assert limits_of([]) == ""
    told = compare_limits({"forward": forward, "backward": backward})
    assert told.startswith("The limits differ (forward 680, backward 787 TFLOP/s)")
    same = compare_limits({"forward": forward, "backward": [row("b_a", limit=682.0)]})
    assert same == "One limit for all: 680 TFLOP/s, so percentages can be compared."
    assert compare_limits({"forward": []}) == "No limit is recorded yet."
    picture = plot_kernels([*forward, *backward], "Both")
    assert any("│ bf16 matmul: 680 to 787" in text.get_text() for text in picture.texts)


@pytest.mark.parametrize("names", [FLASH_FORWARD, DECODE_ATTENTION])
def test_words_do_not_overlap(names):
    rows = [row(name, 4320.0, 4157.1, 4336.0, unit="GB/s") for name in names]
    picture = plot_kernels(rows, "Recorded", names)
    picture.png(1.0)
    renderer, (axes,) = picture.canvas.get_renderer(), picture.axes
    labels = [label.get_window_extent(renderer) for label in axes.get_yticklabels()]
    assert all(picture.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x0 for box in labels)
    assert all(t.get_window_extent(renderer).x1 <= picture.bbox.x1 for t in [*axes.texts, *picture.texts])
    peer = axes.transData.transform((4336.0, 0))[0]
    assert all(text.get_window_extent(renderer).x0 > peer + 5 for text in axes.texts)


def test_bars_limits_and_peers_stand_where_they_were_measured():
    rows = [row("flash_fwd_a"), row("flash_fwd_b", 560.0, None, None)]
    picture = plot_kernels(rows, "Forward")
    (axes,) = picture.axes
    assert [bar.get_width() for bar in axes.patches] == [500.0, 560.0]
    marks = {line.get_marker(): line.get_xdata()[0] for line in axes.lines}
    assert marks == {"None": 700.0, "D": 480.0}
    assert texts(axes) == ["500 · 71% of │ · 1.04 × ◆", "560"]
    assert "recorded on NVIDIA H200, 2026-11-28 · │ bf16 matmul: 700 · ◆ cuDNN" in [
        t.get_text() for t in picture.texts
    ]
    assert "flash_fwd_a 500 TFLOP/s, 71% of bf16 matmul, 1.04 × cuDNN; flash_fwd_b 560" in picture.alt
    picture.png(1.0)


def test_missing_rows_are_said():
    picture = plot_kernels([row(FLASH_FORWARD[0])], "Forward", FLASH_FORWARD)
    assert any(
        "Not recorded yet: flash_fwd_d64_s4096_causal and 6 more" in t.get_text() for t in picture.texts
    )
    picture = plot_kernels([], "Forward", FLASH_FORWARD)
    assert picture.alt.startswith("Forward. Not recorded yet: flash_fwd_d64_s4096_full and 7 more;")
    picture.png(1.0)
    assert "Nothing is recorded yet" in plot_kernels([], "Forward").alt


def test_what_is_recorded_by_now_is_drawn():
    """Whatever the checkout holds, no row or every row."""
    for names in (FLASH_FORWARD, FLASH_BACKWARD, DECODE_ATTENTION, PAGED_ATTENTION):
        plot_kernels(all_of(names), "Recorded", names).png(1.0)


def test_days_are_told_from_first_to_last():
    rows = [row("a", date="2026-12-02"), row("b", date="2026-11-28"), row("c", device="A100")]
    assert origin(rows) == "recorded on NVIDIA H200, A100, 2026-11-28 to 2026-12-02"


def test_different_units_are_drawn_apart():
    with pytest.raises(ValueError, match="rows must have one unit, got GB/s, TFLOP/s; draw them apart"):
        plot_kernels([row("a"), row("b", unit="GB/s")], "Both")
