"""The common look: pictures that show themselves, PNG files, colours that can be told apart."""

import base64
import io
import itertools
import threading

import matplotlib
import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from llmcourse.figures import style as look


def lightness(color: str) -> float:
    """CIE L* of a colour: what is left of it in grey print."""
    rgb = np.array(colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return 116 * y ** (1 / 3) - 16


def contrast_ratio(color: str, paper: str = look.PAPER) -> float:
    """WCAG 2's ratio of luminances."""
    y = [((lightness(c) + 16) / 116) ** 3 + 0.05 for c in (color, paper)]
    return max(y) / min(y)


def test_series_and_fates_differ_in_grey_print():
    steps = [abs(lightness(a) - lightness(b)) for a, b in itertools.combinations(look.SERIES, 2)]
    assert min(steps) > 8
    assert abs(lightness(look.KEPT) - lightness(look.CUT)) > 30


@pytest.mark.parametrize("color", [look.INK, look.MUTED, look.ACCENT])
def test_text_is_readable(color):
    assert contrast_ratio(color) > 4.5


def test_png_files_hold_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(look.write_png(pixels)))) == pixels).all()


def test_a_picture_shows_itself_with_its_text():
    picture = look.Picture(3.0, 2.0, alt="three bars")
    data, metadata = picture._repr_mimebundle_()
    image = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert image.size == (600, 400)
    assert data["text/plain"] == "three bars"
    assert metadata["image/png"] == {"width": 300, "height": 200, "alt": "three bars"}


def test_the_users_settings_do_not_show_in_a_picture():
    def pixels():
        with look.style():
            picture = look.Picture(2.0, 2.0)
            picture.add_subplot().set_title("春")
        return picture.png()

    plain = pixels()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "xtick.labelsize": 20}):
        assert pixels() == plain


def test_only_what_moves_is_painted_again():
    with look.style():
        picture = look.Picture(2.0, 1.0)
        still = picture.text(0.1, 0.5, "still")
        picture.moving = [picture.text(0.5, 0.5, "a")]
    first = picture.png()
    picture.moving[0].set_text("b")
    assert picture.png() != first
    second = picture.png()
    still.set_text("changed")
    assert picture.png() == second  # not painted again: its key is the same
    picture.still_key = "other"
    assert picture.png() != second


def test_two_threads_paint_a_picture_one_after_the_other(monkeypatch):
    with look.style():
        picture = look.Picture(2.0, 1.0)
        picture.add_axes((0.2, 0.2, 0.7, 0.7)).set_title("still")
        picture.moving = [picture.text(0.5, 0.5, "moving")]
    alone = [picture.png(2.0), picture.png(1.5)]
    painted, draw = [], picture.canvas.draw
    other = threading.Thread(target=lambda: painted.append(picture.png(1.5)))

    def draw_while_the_other_wants_to():
        if threading.current_thread() is not other:
            other.start()
            other.join(0.5)  # long enough to paint, if nothing held it back
        draw()

    monkeypatch.setattr(picture.canvas, "draw", draw_while_the_other_wants_to)
    painted.append(picture.png(2.0))
    other.join()
    assert sorted(painted, key=len, reverse=True) == alone


def test_the_users_settings_outlive_two_threads():
    before, entered = dict(matplotlib.rcParams), threading.Event()

    def enter():
        with look.style():
            entered.set()

    with look.style():
        other = threading.Thread(target=enter)
        other.start()
        assert not entered.wait(0.2)  # else it would take the course's settings for the user's
    other.join()
    assert entered.is_set() and dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("coffee", 6, "coffee"),
        ("coffees", 6, "coffe…"),
        ("床前明月光", 10, "床前明月光"),
        ("床前明月光", 8, "床前明…"),
        ("######", 6, "###…"),
        ("明月", 1, "明…"),
    ],
)
def test_shortening_counts_width(text, length, expected):
    assert look.shorten(text, length) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.0, "0.0%"),
        (1.0, "100.0%"),
        (0.681, "68.1%"),
        (0.001, "0.1%"),
        (0.0005, "0.05%"),
        (4.3e-6, "4e-6"),
        (1e-12, "1e-12"),
    ],
)
def test_percentages_get_finer_where_small(p, expected):
    assert look.percent(p) == expected


@pytest.mark.parametrize(
    ("time_s", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.2e-6, "4.2 µs"), (1234.0, "1,234 s")]
)
def test_times_have_the_unit_that_suits(time_s, text):
    assert look.seconds(time_s) == text
