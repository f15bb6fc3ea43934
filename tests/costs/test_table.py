"""The lecture's tables: its rows, its formulas, its numbers."""

import pytest

from llmcourse.costs import (
    BF16,
    LECTURE_DECODE,
    LECTURE_PREFILL,
    LLAMA_2_7B,
    QWEN3_0_6B,
    Precision,
    Step,
    layer_costs,
    layer_table,
)

LINEAR = r"\frac{1}{\frac{1}{H} + \frac{1}{B T}}"
MLP = r"\frac{1}{\frac{1}{H'} + \frac{1}{H} + \frac{1}{B T}}"
NORM = r"\frac{1}{1 + \frac{1}{B T}}"
# number, formula, O(…), and the intensity that the slide gives, as it rounds it
PREFILL = [
    ("①", "Q, K, V = X W^{Q,K,V}", LINEAR, 2730.7),
    ("②", r"Q, K = \mathrm{RoPE}(Q, K)", "1", 1.0),
    ("③", r"O = \mathrm{Attn}(Q, K, V)", r"\frac{1 + \frac{1}{D}}{\frac{1}{D} + \frac{1}{T}}", 114.7),
    ("④", "X = O W^{O}", LINEAR, 2730.7),
    ("⑤", r"X = \mathrm{Add\&Norm}(X)", NORM, 1.0),
    ("⑥", "G, U = X [W^{G}, W^{U}]", MLP, None),  # the slide names no H'
    ("⑦", r"D = \mathrm{Swish}(G) \cdot U", "1", 1.0),
    ("⑧", "X = D W^{D}", MLP, None),
    ("⑨", r"X = \mathrm{Add\&Norm}(X)", NORM, 1.0),
]
ATTENTION = r"\frac{1 + \frac{1}{D}}{1 + \frac{1}{D} + \frac{1}{T}}"
DECODE = [
    ("①", "Q, K, V = X W^{Q,K,V}", LINEAR.replace(" T", ""), 8.0),
    ("②", r"Q, K = \mathrm{RoPE}(Q, K)", "1", 1.0),
    ("③", r"K, V = \mathrm{Cache}(K, V)", None, 0.0),
    ("④", r"O = \mathrm{Attn}(Q, K, V)", ATTENTION, 1.0),
    ("⑤", "X = O W^{O}", LINEAR.replace(" T", ""), 8.0),
    ("⑥", r"X = \mathrm{Add\&Norm}(X)", NORM.replace(" T", ""), 0.9),
    ("⑦", "G, U = X [W^{G}, W^{U}]", MLP.replace(" T", ""), 8.0),
    ("⑧", r"D = \mathrm{Swish}(G) \cdot U", "1", 1.0),
    ("⑨", "X = D W^{D}", MLP.replace(" T", ""), 8.0),
    ("⑩", r"X = \mathrm{Add\&Norm}(X)", NORM.replace(" T", ""), 0.9),
]


@pytest.mark.parametrize(("step", "expected"), [(LECTURE_PREFILL, PREFILL), (LECTURE_DECODE, DECODE)])
def test_the_rows_are_those_of_the_lecture(step, expected):
    for row, (number, formula, order, intensity) in zip(layer_table(step=step), expected, strict=True):
        assert (row.number, row.formula) == (number, formula)
        assert row.order == ("-" if order is None else f"O({order})")
        if intensity is not None:
            assert round(row.lecture_intensity, 1) == intensity, row.name


def test_the_lecture_counts_what_it_says_it_counts():
    """Its shapes are B = 8, T = 1024, H = 4096, D = 128; attention is 4BT²ND + 4BT²N FLOPs."""
    assert (LECTURE_PREFILL.batch, LECTURE_PREFILL.new_tokens) == (8, 1024)
    assert (LECTURE_DECODE.batch, LECTURE_DECODE.new_tokens, LECTURE_DECODE.keys) == (8, 1, 1024)
    assert (LLAMA_2_7B.hidden_size, LLAMA_2_7B.head_dim) == (4096, 128)
    rows = layer_table()
    assert str(rows[2].flops) == "4BT²ND + 4BT²N" and str(rows[3].flops) == "2BTH²"
    assert (str(rows[3].read_elements), str(rows[3].written_elements)) == ("BTH + H²", "BTH")


def test_every_row_counts_as_it_says():
    """FLOPs, elements read, elements written; cosines and sines are D numbers a token."""
    counts = [tuple(map(str, (r.flops, r.read_elements, r.written_elements))) for r in layer_table()]
    add_norm = ("5BTH", "2BTH + H", "2BTH")
    assert counts == [
        ("6BTH²", "BTH + 3H²", "3BTH"),
        ("6BTH", "2BTH + BTD", "2BTH"),
        ("4BT²ND + 4BT²N", "2BT²N + 3BTND", "2BT²N + BTND"),
        ("2BTH²", "BTH + H²", "BTH"),
        add_norm,
        ("4BTHH′", "BTH + 2HH′", "2BTH′"),
        ("4BTH′", "2BTH′", "BTH′"),
        ("2BTHH′", "BTH′ + HH′", "BTH"),
        add_norm,
    ]


def test_exact_intensities_are_lower_where_tensors_are_moved_twice():
    """O W: the lecture counts one of X and O; attention: one of four passes over the scores."""
    rows = layer_table()
    flops, traffic = 2 * 8 * 1024 * 4096**2, 2 * (2 * 8 * 1024 * 4096 + 4096**2)
    assert rows[3].cost.intensity == flops / traffic == pytest.approx(1638.4)
    assert rows[2].cost.intensity == pytest.approx(57.33, abs=0.01)


@pytest.mark.parametrize("step", [LECTURE_PREFILL, LECTURE_DECODE, Step.chunk(3, 5, 11)])
@pytest.mark.parametrize("shapes", [LLAMA_2_7B, QWEN3_0_6B])
@pytest.mark.parametrize("precision", [BF16, Precision("int4", cache="int8", group_size=128)])
def test_numbers_and_symbols_are_of_one_count(step, shapes, precision):
    rows = layer_table(shapes, step, precision)
    assert tuple(row.cost for row in rows) == layer_costs(shapes, step, precision, attention="unfused")
    assert all(row.cost.flops == 0 or row.order.startswith("O(") for row in rows)


def test_half_the_bytes_double_the_exact_intensity_and_leave_the_lectures_alone():
    full, half = (layer_table(precision=Precision.uniform(dtype)) for dtype in ("fp32", "bf16"))
    for a, b in zip(full, half, strict=True):
        assert b.cost.intensity == pytest.approx(2 * a.cost.intensity)
        assert b.lecture_intensity == a.lecture_intensity


def test_grouped_queries_and_norms_of_heads_have_their_own_letters_and_rows():
    rows = layer_table(QWEN3_0_6B, Step.chunk(2, 64, past=100), attention="fused")
    assert [row.number for row in rows] == list("①②③④⑤⑥⑦⑧⑨⑩⑪")
    assert rows[1].name == "QK norm"
    assert str(rows[0].flops) == "2BTHHq + 4BTHHkv"
    assert rows[4].order == r"O(\frac{1 + \frac{1}{D}}{\frac{1}{S} + \frac{N_{kv}}{T N}})"


def test_the_orders_value_is_that_of_its_letters():
    """Decoding a context of 100: T stands for the keys, and one new token for none."""
    row = layer_table(LLAMA_2_7B, Step.decode(4, context=100))[3]
    assert row.lecture_intensity == pytest.approx((1 + 1 / 128) / (1 + 1 / 128 + 1 / 100))
