"""What is told apart by colour in a plot is so for colour-blind eyes and in grey print, or by a second sign.

Colours as they are seen without one kind of cone by the matrices of Machado et al. 2009, "A
Physiologically-based Model for Simulation of Color Vision Deficiency", table 1 (severity 1.0), which are of
linear RGB; distances in CIE L*a*b*. In print only L* is left.
"""

import importlib
import itertools

import numpy as np
import pytest
from matplotlib import colors

from llmcourse.figures import style as look

MACHADO = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
SEEN = (
    15.0  # ΔE*ab: beside each other, 2 can just be told; apart from each other, and small, far more is needed
)
PRINTED = 9.0  # ΔL*
ALL_CONES = np.eye(3)
WHITE = np.array([0.95047, 1.0, 1.08883])
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(color, matrix=ALL_CONES) -> np.ndarray:
    rgb = np.array(colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ (np.array(matrix) @ linear).clip(0, 1) / WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distances(one, other) -> dict[str, float]:
    """By kind of eye, and in grey."""
    eyes = {"all cones": ALL_CONES} | MACHADO
    found = {eye: np.linalg.norm(lab(one, m) - lab(other, m)) for eye, m in eyes.items()}
    return found | {"grey": abs(lab(one)[0] - lab(other)[0])}


def faults(palette, grey: bool = True) -> list[str]:
    least = dict.fromkeys(MACHADO, SEEN) | {"all cones": SEEN} | ({"grey": PRINTED} if grey else {})
    pairs = [(a, b, distances(a, b)) for a, b in itertools.combinations(palette, 2)]
    return [
        f"{a} and {b}, {eye}: {found[eye]:.1f}"
        for a, b, found in pairs
        for eye in least
        if found[eye] < least[eye]
    ]


def of(module: str):
    return importlib.import_module(f"llmcourse.figures.{module}")


def fills(looks) -> list[str]:
    """Of those kinds that no hatching tells."""
    return [one["facecolor"] for one in looks if "hatch" not in one]


# What stands beside each other with one meaning each, in bars, areas, maps and lines.
ALONE = {
    "series": lambda: look.SERIES,
    "kept and cut": lambda: (look.KEPT, look.CUT),
    "bars and the mark of a place": lambda: (look.SERIES[0], look.ACCENT, look.PAPER),
    "text and what is quiet": lambda: (look.INK, look.MUTED, look.LINE, look.PAPER),
    "timeline": lambda: fills(of("timeline_plot").LOOKS.values())[:3],
    "memory": lambda: fills(of("memory_bars").PARTS.values()),
    "soft labels, who": lambda: (of("soft_labels_plot").TEACHER, of("soft_labels_plot").STUDENT),
    "soft labels, where to": lambda: fills((of("soft_labels_plot").UP, of("soft_labels_plot").DOWN)),
    "expert, cut and amateur": lambda: (look.SERIES[0], "#a9bccd", look.PAPER),
    "expert and amateur": lambda: (look.SERIES[0], of("contrast").AMATEUR["facecolor"]),
    "draft gain": lambda: (of("draft_gain").BEFORE, of("draft_gain").AFTER),
    "step tokens": lambda: (of("step_tokens").PROMPT, of("step_tokens").ANSWER),
    "tiles": lambda: (look.ACCENT, of("tiles_plot").DONE, of("tiles_plot").WAITS),
    "traffic": lambda: (look.SERIES[0], of("tiles_plot").WRITTEN),
    "layer errors": lambda: of("layer_errors").COLORS,
    "exit curves": lambda: (look.SERIES[0], look.SERIES[2], look.INK),
    "filling": lambda: (of("filling_plot").NEW, of("filling_plot").STANDS, of("filling_plot").NOT_YET),
    "outlier growth": lambda: [color for *_, color in of("outlier_growth").WAYS.values()],
}


@pytest.mark.parametrize("name", ALONE)
def test_colours_of_one_plot_are_told_apart(name):
    assert faults(ALONE[name]()) == []


# Colours that alone would not do, and what tells the same.
def test_marks_of_a_text_have_a_second_sign():
    styles = of("speculation_strip").STYLES
    assert "line-through" in styles["rejected"] and "line-through" not in styles["accepted"]
    assert "border-bottom" in styles["accepted"] and "border-bottom" not in styles["rejected"]
    assert len({style.partition(";")[2] for style in styles.values()}) == len(styles)


def test_what_is_cut_is_hatched():
    for kind in ("wasted", "held"):
        assert of("timeline_plot").LOOKS[kind]["hatch"]
    assert of("memory_bars").PARTS["activations"]["hatch"] and of("levels_plot").CLIPPED["hatch"]


def test_each_series_has_a_marker_of_its_own():
    assert len(set(look.MARKERS)) == len(look.SERIES)


@pytest.mark.parametrize(
    ("module", "shades"),
    [
        ("exit_heat", "SHADES"),
        ("outlier_plot", "SHADES"),
        ("layer_links_plot", "SHADES"),
        ("levels_plot", "SHADES"),
        ("candidate_tree", "FILL"),
        ("bits_curve", "SIZES"),
        ("filling_plot", "SHADES"),
        ("text_strip", "SHADES"),
    ],
)
def test_shades_darken_all_the_way_for_every_eye(module, shades):
    """So that a map reads the same in grey: more is darker."""
    found = getattr(of(module), shades)
    scale = found if isinstance(found, tuple) else [found(x) for x in np.linspace(0, 1, 9)]
    for matrix in (ALL_CONES, *MACHADO.values()):
        falls = -np.diff([lab(color, matrix)[0] for color in scale])
        assert (falls > 0).all(), falls


def test_red_and_green_of_one_lightness_are_found():
    """The check itself can fail."""
    assert any("deuteranopia" in fault for fault in faults(("#c05050", "#6f7f3a")))
    assert any("grey" in fault for fault in faults(("#c05050", "#3f7fb5")))
    assert faults(("#000000", "#ffffff")) == []
