"""Chinese text is drawn from the package's own font, and nothing of the user's matplotlib is touched."""

import base64
import io
import logging
import re
import subprocess
import sys
import warnings

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib.font_manager import fontManager

from llmcourse.figures import subset_font
from llmcourse.figures.fonts import (
    FAMILIES,
    HAN_FAMILY,
    HAN_FONT,
    MISSING,
    chinese,
    covered_characters,
    install_fonts,
    readable,
    web_font,
)
from llmcourse.figures.style import SETTINGS, Picture, style

POEM = "《静夜思》李白：床前明月光，疑是地上霜。举头望明月，低头思故乡！、；？“湖北”明朝"


def draw(text: str, families=FAMILIES, weight="normal") -> np.ndarray:
    with style():
        picture = Picture(9.0, 0.6)
        picture.text(0.01, 0.3, text, family=families, weight=weight)
        picture.png(1.0)
        return np.asarray(picture.canvas.buffer_rgba()).copy()


@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_chinese_is_drawn_without_a_complaint(caplog, weight):
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, logger="matplotlib"):
        warnings.simplefilter("error")
        draw(POEM, weight=weight)
    assert caplog.records == []


def test_without_the_font_matplotlib_complains():
    with pytest.warns(UserWarning, match="missing from font"):
        draw(POEM, families=["DejaVu Sans"])


def test_different_characters_look_different():
    moon, bright, missing = draw("月"), draw("明"), draw(MISSING)
    assert (moon != bright).any() and (moon != missing).any()


def test_every_character_of_the_standard_is_covered():
    hanzi = {ch for ch in subset_font.gb2312() if "\u4e00" <= ch <= "\u9fff"}
    assert len(hanzi) == 6763
    assert {ch for ch in hanzi | set(POEM) | set("（）…—·") if ord(ch) not in covered_characters()} == set()


def test_most_of_what_the_poems_use_beyond_the_standard_is_covered():
    extra = set(subset_font.CHARACTERS.read_text(encoding="utf-8")) - {"\n"}
    drawn = [ch for ch in extra if ord(ch) in covered_characters()]
    assert len(extra) > 1500 and len(drawn) / len(extra) > 0.85


def test_characters_that_no_font_has_become_a_box():
    assert readable("月\x07𬤇a\n$") == f"月{MISSING}{MISSING}a\n$"


def test_installing_is_idempotent():
    install_fonts()
    before = list(fontManager.ttflist)
    assert install_fonts() == FAMILIES
    assert fontManager.ttflist == before


def test_a_missing_font_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("llmcourse.figures.fonts.HAN_FAMILY", "Nowhere")
    monkeypatch.setattr("llmcourse.figures.fonts.HAN_FONT", tmp_path / "gone.ttf")
    with pytest.raises(FileNotFoundError, match=r"missing at .*gone\.ttf; reinstall it"):
        install_fonts()


def test_neither_the_users_cache_nor_the_defaults_change(tmp_path, monkeypatch):
    code = """
import sys, pathlib, matplotlib
from matplotlib import font_manager
folder = pathlib.Path(matplotlib.get_cachedir())
state = lambda: {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
files, defaults = state(), matplotlib.rcParams.copy()
import torch
from llmcourse.figures.distribution import next_token, plot_next_token
picture = plot_next_token(next_token(torch.zeros(9), torch.zeros(9), "李{}".format, rows=3))
picture.png()
assert files and state() == files, "the cache folder changed"
assert matplotlib.rcParams.copy() == defaults, "defaults changed"
assert "matplotlib.pyplot" not in sys.modules, "pyplot was imported"
"""
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_style_leaves_when_its_block_ends():
    before = matplotlib.rcParams.copy()
    with style():
        assert matplotlib.rcParams["font.size"] == SETTINGS["font.size"] != before["font.size"]
    assert matplotlib.rcParams.copy() == before


def test_the_font_is_small_licensed_and_has_a_name_of_its_own():
    assert HAN_FONT.stat().st_size < 1_300_000
    assert "Apache License" in (HAN_FONT.parent / "LICENSE.txt").read_text(encoding="utf-8")
    names = {record.nameID: str(record) for record in TTFont(HAN_FONT)["name"].names}
    assert names[1] == HAN_FAMILY
    assert not any("Droid" in names[entry] for entry in (1, 3, 4, 6))
    assert "Apache" in names[13] and "Google" in names[0] and "Subset of" in names[10]


def test_the_same_characters_give_the_same_bytes(tmp_path):
    files = [tmp_path / "a.ttf", tmp_path / "b.ttf"]
    counts = [subset_font.write_subset(HAN_FONT, set("明月𬤇"), file) for file in files]
    assert counts == [2, 2]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert set(TTFont(files[0]).getBestCmap()) == {ord("明"), ord("月")}


def test_frequent_characters_are_counted_over_all_texts(tmp_path):
    for name, text in (("a", "月月 aa 明"), ("b", "明风")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert subset_font.frequent([tmp_path / "a", tmp_path / "b"]) == {"月", "明"}


def test_browsers_get_the_characters_of_a_text_and_no_others():
    css = web_font(chinese("a明月，\n𬤇"))
    (data,) = re.findall(r"base64,([^)]*)\)", css)
    font = TTFont(io.BytesIO(base64.b64decode(data)))
    assert set(font.getBestCmap()) == {ord(ch) for ch in "明月，"}
    assert css.endswith("unicode-range:U+660E,U+6708,U+FF0C}") and len(css) < 3000
    assert web_font(chinese("plain")) == ""
