"""Quality by bits and by size: lines go through the rows, and what does not fit is refused."""

import math

import pytest

from llmcourse.figures.bits_curve import count, plot_bits, points_of

MODELS = {"draft": 1_900_000, "small": 5_400_000, "base": 11_200_000}


def row(model="draft", method="round", bits=4, kl=0.1, domain="prose", reference=20.0):
    scheme = f"int{bits}" if method == "round" else f"int{bits}-{method}"
    found = {"model": model, "parameters": MODELS.get(model, 10**6), "scheme": scheme, "domain": domain}
    return found | {"perplexity": reference * math.exp(kl), "reference_perplexity": reference, "kl": kl}


ROWS = [
    row(model, method, bits, kl / MODELS[model] * 1e6 * (0.5 if method == "gptq" else 1))
    for model in MODELS
    for method in ("gptq", "round")
    for bits, kl in ((8, 0.001), (4, 0.1), (2, 2.0))
]


def test_points_are_those_of_one_domain_from_the_smallest_model_on():
    points = points_of([*ROWS[::-1], row(domain="code", kl=9.0)], "prose")
    assert len(points) == len(ROWS) and max(p.kl for p in points) < 9
    assert [p.parameters for p in points] == sorted(p.parameters for p in points)
    first = points[0]
    assert (first.model, first.parameters, first.method, first.bits) == ("draft", 1_900_000, "gptq", 8)


def test_rows_of_other_schemes_and_folders():
    others = [
        row() | {"scheme": scheme} for scheme in ("w8a8", "llm.int8", "fp8", "int4-g32", "int4-gptq-g64")
    ]
    (point,) = points_of([*others, row("trained/d512/", "awq", 3)], "prose")
    assert (point.model, point.method, point.bits) == ("d512", "awq", 3)
    with pytest.raises(ValueError, match="domain must be one of prose, with weights in few bits"):
        points_of(others, "prose")


def test_a_domain_without_rows_is_refused():
    with pytest.raises(ValueError, match=r"domain must be one of prose, .* got 'verse'"):
        points_of(ROWS, "verse")
    with pytest.raises(ValueError, match="none: there are no rows"):
        points_of([], "prose")


def test_the_rise_is_that_of_the_loss():
    assert points_of([row(kl=0.25)], "prose")[0].rise == pytest.approx(0.25)


def test_the_left_lines_are_perplexities_up_to_16_bits():
    points = points_of(ROWS, "prose")
    picture = plot_bits(points, method="round")
    left, _ = picture.axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["2", "4", "8", "16"]
    for line, model in zip(left.lines, MODELS, strict=True):
        known = {p.bits: p.perplexity for p in points if (p.model, p.method) == (model, "round")}
        assert list(line.get_ydata()) == [known[2], known[4], known[8], 20.0]
    assert "perplexity 20; 8 bits 20.01 (KL 0.000526)" in picture.alt
    picture.png(1.0)


@pytest.mark.parametrize("gap", ["kl", "rise"])
def test_the_right_lines_are_losses_by_size(gap):
    points = points_of(ROWS, "prose")
    _, right = plot_bits(points, gap=gap).axes
    drawn = [list(line.get_ydata()) for line in right.lines]
    expected = [
        [getattr(p, gap) for p in points if (p.bits, p.method) == (bits, method)]
        for bits in (8, 4, 2)
        for method in ("gptq", "round")
    ]
    assert drawn == [pytest.approx(one) for one in expected]
    assert all(list(line.get_xdata()) == sorted(MODELS.values()) for line in right.lines)


def test_a_loss_below_0_is_drawn_at_the_edge():
    _, right = plot_bits(points_of([row(kl=-0.01), row("base", kl=0.01)], "prose"), gap="rise").axes
    assert list(right.lines[0].get_ydata()) == [1e-6, pytest.approx(0.01)]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "points must be of 1 to 8 models, got 0"),
        (ROWS, {"gap": "speed"}, "gap must be one of kl, rise, got 'speed'"),
        (ROWS, {"method": "awq"}, "method must be one of gptq, round, got 'awq'"),
        ([row(method=m) for m in "abcd"], {}, "points must be of 1 to 3 methods, got 4"),
        ([row(bits=b) for b in (8, 6, 4, 3, 2)], {}, "points must be of 1 to 4 widths, got 5"),
        ([row(str(n)) for n in range(9)], {}, "points must be of 1 to 8 models, got 9"),
    ],
)
def test_what_does_not_fit_is_refused(rows, settings, message):
    points = points_of(rows, "prose") if rows else []
    with pytest.raises(ValueError, match=message):
        plot_bits(points, **settings)


def test_words_do_not_lie_on_one_another():
    picture = plot_bits(points_of(ROWS, "prose"), "Title", "prose")
    picture.png(1.0)
    renderer = picture.canvas.get_renderer()
    left, right = picture.axes
    legend = left.get_legend().get_window_extent(renderer)
    ticks = [label.get_window_extent(renderer) for label in right.get_yticklabels()]
    assert all(legend.x1 < box.x0 for box in ticks if box.y1 > legend.y0)
    assert right.get_legend().get_window_extent(renderer).x1 <= picture.bbox.x1
    assert left.texts[0].get_window_extent(renderer).y1 < picture.texts[1].get_window_extent(renderer).y0


@pytest.mark.parametrize(("kls", "expected"), [((0.05, 0.7), 4), ((1e-4, 1e-3, 0.5), 3)])
def test_a_scale_can_be_read(kls, expected):
    rows = [row(model, kl=kl) for model, kl in zip(MODELS, kls, strict=False)]
    axes = plot_bits(points_of(rows, "prose")).axes[1]
    low, high = axes.get_ylim()
    shown = [y for y in axes.get_yticks() if low <= y <= high]
    assert expected <= len(shown) <= 8


def test_counts_of_parameters():
    assert [count(n) for n in (8e9, 13_800_000, 1_900_000, 5000, 12)] == ["8B", "13.8M", "1.9M", "5K", "12"]


def test_two_models_of_one_name_are_two_lines():
    two = [
        row("narrow/target", bits=bits, kl=kl) | {"parameters": size, "reference_perplexity": start}
        for size, start in ((411_000_000, 55.0), (923_000_000, 67.0))
        for bits, kl in ((4, 0.01), (3, 0.02))
    ]
    picture = plot_bits(points_of(two, "prose"))
    lines = picture.axes[0].lines
    assert [line.get_ydata()[-1] for line in lines] == [55.0, 67.0]
    assert [text.get_text() for text in picture.axes[0].get_legend().get_texts()] == [
        "target 411M",
        "target 923M",
    ]
    assert "411M: perplexity 55" in picture.alt and "923M: perplexity 67" in picture.alt
