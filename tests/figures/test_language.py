"""Figures and widgets in Chinese: every phrase has a translation, and what is no phrase stays as it is."""

import json
import re
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from llmcourse.figures import distribution, drawn_text, findings_table, language, style, tours, widgets
from llmcourse.figures.course_map import Chapter
from llmcourse.figures.fonts import covered_characters
from llmcourse.figures.text_strip import StripPiece, TextStrip
from llmcourse.figures.widgets import machines
from llmcourse.figures.widgets import view as v
from llmcourse.hardware import Ceilings
from tests.figures.phrases import phrases, phrases_of

FOLDER = Path(language.__file__).parent
PLACES = re.compile(r"\{[#w]?\}")
HAN = re.compile(r"[\u4e00-\u9fff]")
# Names and units that Chinese readers write the same way.
WRITTEN_ALIKE = """
nat ln softmax min max top alpha int fp bf byte log clamp Python PyTorch LLM base draft tok Medusa
CPU dB GB MB ms Llama Qwen FLOP FLOPs GFLOP GPU SRAM TTFT ITL TPOT SNR CKA ECE KL JSD JS GPTQ AWQ
FlashAttention
"""
NAMES = set(WRITTEN_ALIKE.split())
# Parts of error messages, texts for models, and settings of the page: nobody translates them.
NO_LABELS = {
    *("such that all 7 settings take at most 7 forward passes", "one token alone has no dial; use 32"),
    *("of 1 to 7 branches", "both read the same tokens", "give a longer text", "10 can be read"),
    *("the figure is of soft labels alone", "logits hold NaN, or one side rules out what the other says"),
    *("give that of the scheduler", "use math.inf for all", "a step of each has a picture of its own"),
    *("an integer in [1, 7]", "use 0 for greedy decoding, 1 for the backbone's own"),
    *("a title like `# Chapter 1 · Decoding`", "a line `**Time** about 60 minutes`"),
    *("[lab 7](../labs/7.ipynb)", "a map takes at most 7 tokens"),
    *("I am sleepy. I start a pot of", "Once upon a time there was"),
    *("def read_lines(path):", "row wrap", "th scope='col'", "LLM Course Han", "DejaVu Sans", "heads of {}"),
    *(
        "· 7 a step after the prompt",
        "offset points",
        "upper left",
        "lower right",
        "upper right",
        "lower left",
        "numbers of passes",
    ),
}


@pytest.fixture
def chinese():
    language.use("zh")
    yield
    language.use("en")


def left_in_english(text: str) -> list[str]:
    """Words of a translated text that are neither names nor quoted."""
    bare = re.sub(r"“[^”]*”", "", text)
    return [word for word in re.findall(r"[A-Za-z]{2,}", bare) if word not in NAMES]


def untranslated(folder: Path = FOLDER) -> list[str]:
    found = (
        (at, text, language.translated(text)) for at, text in phrases_of(folder) if text not in NO_LABELS
    )
    return [
        f"{at}: {text!r} → {out!r}" for at, text, out in found if left_in_english(out) and not _page(text)
    ]


def _page(text: str) -> bool:
    return re.match(r"padding:|min\(100%", text) is not None


def test_every_phrase_of_a_figure_or_widget_is_in_the_catalogue():
    assert untranslated() == []


def test_a_phrase_without_a_translation_is_noticed(tmp_path):
    (tmp_path / "new.py").write_text(
        '"""Doc string here."""\nlabel = f"never seen {n} before"\n', encoding="utf-8"
    )
    assert untranslated(tmp_path) == ["new.py:2: 'never seen 7 before' → 'never seen 7 before'"]


def test_what_nobody_sees_is_no_phrase():
    source = '"""A doc."""\ndef f(x: "a long type"):\n    """More of it."""\n    raise E(f"not {x} at all")'
    assert list(phrases(source)) == []


def test_the_catalogue_is_well_formed():
    groups = json.loads(language.CATALOGUE.read_text(encoding="utf-8"))
    entries = [entry for group in groups.values() for entry in group.items()]
    assert len({english for english, _ in entries}) == len(entries), "an entry stands twice"
    for english, chinese in entries:
        places, numbered = len(PLACES.findall(english)), re.findall(r"\{(\d*)\}", chinese)
        wanted = sorted(map(int, numbered)) if any(numbered) else list(range(len(numbered)))
        # A place may be left out, such as the plural's s, but none may be named that is not there.
        assert set(wanted) <= set(range(places)) and len(set(wanted)) == len(wanted), english
        assert any(numbered) or len(numbered) == places, english


def test_our_fonts_can_write_all_of_it():
    written = set("".join(language.catalogue().values()))
    assert {ch for ch in written if ord(ch) > 126} - set(map(chr, covered_characters())) == set()


def test_english_is_left_alone():
    assert language.current() == "en"
    assert language.text("probability") == "probability" and language.page("<b>probability</b>").startswith(
        "<b>pr"
    )
    with pytest.raises(ValueError, match="language must be one of en, zh, got 'fr'"):
        language.use("fr")
    assert language.current() == "en"


@pytest.mark.parametrize(
    ("english", "wanted"),
    [
        ("probability", "概率"),
        (" probability ", " 概率 "),
        ("step 3", "第 3 步"),
        (
            "12,288 of 12,288 tokens kept · 100.0% of the mass",
            "保留 12,288 个词元中的 12,288 个 · 概率质量的 100.0%",
        ),
        ("base, after “time, tokens. Step 3”", "base，前文“time, tokens. Step 3”"),
        ("Where “time” fell: p · q", "“time”被拒绝处：p · q"),
        ("One scale, two zero points\nprobability", "一个缩放因子，两个零点因子\n概率"),
        ("● measured", "● 实测"),
        ("␣time", "␣time"),
        ("3.5", "3.5"),
        ("no such label", "no such label"),
        ("The target reads the prompt and writes “the”.", "目标模型读入提示词，写出 “the”。"),
    ],
)
def test_texts_are_found_whole_by_places_and_part_by_part(chinese, english, wanted):
    assert language.text(english) == wanted


def test_a_page_keeps_its_tags_and_the_texts_of_models(chinese):
    own = '<span translate="no">probability &amp; time</span><p>time &lt; 3</p>'
    page = f'<td title="clipped">probability</td>{own}'
    assert language.page(page) == f'<td title="被截断">概率</td>{own}'
    assert language.page("<style>time</style><p>time</p>") == "<style>time</style><p>时间</p>"
    assert language.table("| layers | a |\n|---|---|") == "| 层 | a |\n|---|---|"


def test_the_tables_of_the_front_page_are_chinese_and_lead_to_chinese_labs(chinese):
    chapters = (Chapter(1, "01_decoding", "Decoding", 60, ()),)
    page = tours.minutes_table(
        chapters, {"01_decoding": [chapters[0]]}, {"01_decoding": 100}
    )._repr_markdown_()
    assert "| 章 |" in page and "[解码](01_decoding.ipynb)" in page and "**1 小时 00 分**" in page
    assert "[实验 1](../../labs/zh/01_decoding.ipynb)" in page and "合计" in page
    weeks = tours.six_weeks(chapters, {"01_decoding": 100})._repr_markdown_()
    assert "学生用时" in weeks and "| 实验 1 |" in weeks and "2 小时 40 分" in weeks
    table = findings_table.FindingsTable((("machine", "system", "Linux", "missing", "run `run`"),), "")
    assert "✗ 缺少" in table._repr_html_() and "运行 <code>run</code>" in table._repr_html_()


def test_a_strip_in_chinese_keeps_the_text_of_the_model(chinese):
    page = TextStrip("time", (StripPiece("probability", 0.5),))._repr_html_()
    assert ">time<" in page and ">probability<" in page
    assert "概率：" in page and "less" not in page


def test_a_text_that_a_figure_is_about_keeps_its_full_stops(chinese):
    told = language.text("I am sleepy. I start a pot of …: 3 of 5 tokens kept. Likeliest: ␣tea")
    assert told == "I am sleepy. I start a pot of …：保留 5 个词元中的 3 个。最可能：␣tea"


OWN_TEXTS = ["time", "step 3", "kept", "limit", "entropy: 2", "a, b; time. Step 3", "expert alone: x → y"]


@pytest.mark.parametrize("text", OWN_TEXTS)
def test_a_text_of_a_model_is_shown_as_it_is_alone_and_among_labels(chinese, text):
    own = language.own(text)
    assert language.text(own) == text and language.page(f"<p>{own}</p>") == f"<p>{text}</p>"
    assert language.text(f"Likeliest: {own} 12%. probability") == f"最可能：{text} 12%。概率"
    assert language.table(f"| {own} | layers |") == f"| {text} | 层 |"
    language.use("en")
    assert language.text(f"Likeliest: {own}") == f"Likeliest: {text}"
    assert language.page(f"<p>{own}</p>") == f"<p>{text}</p>" and language.table(f"|{own}|") == f"|{text}|"


def test_what_is_no_word_of_the_catalogue_needs_no_mark():
    assert language.own("␣zebra") == "␣zebra" and language.own("春天 3") == "春天 3"
    assert language.own(language.own("time")) == language.own("time") != "time"


def labels_of_models(monkeypatch) -> list[str]:
    """Every text that a next-token figure, drawn of tokens that are labels too, paints."""
    words = ["time", "kept", "cut", "probability", "step 3", "entropy"]
    logits = torch.arange(len(words), 0.0, -1.0)
    picture = distribution.plot_next_token(distribution.next_token(logits, logits, words.__getitem__, 5))
    painted: list[str] = []
    monkeypatch.setattr(drawn_text, "_kept", OrderedDict())
    paint = lambda self, gc, x, y, s, *rest, **named: painted.append(s)  # noqa: E731
    monkeypatch.setattr(drawn_text.RendererAgg, "draw_text", paint)
    picture.png()
    return [*painted, language.text(picture.alt)]


def test_tokens_in_a_figure_that_are_labels_too_stay_english(chinese, monkeypatch):
    painted = labels_of_models(monkeypatch)
    assert {"time", "kept", "cut", "probability", "step 3"} <= set(painted)
    assert "概率" in painted and "其余 1 个" in painted
    assert "最可能：time" in painted[-1] and not any(language.OPEN in text for text in painted)


def test_a_models_word_that_is_a_label_too_is_drawn_whole(chinese, monkeypatch):
    """Its sheet is as wide as the word itself, not as the label's Chinese, which is narrower."""
    kept = OrderedDict()
    monkeypatch.setattr(drawn_text, "_kept", kept)
    with style.style():
        picture = style.Picture(4.0, 2.0)
        word = picture.text(0.1, 0.5, language.own("probability"))
        picture.png(1.0)
    ((key, (image, _)),) = kept.items()
    assert key[0] == "probability" and image.shape[1] >= word.get_window_extent().width


def drawn(picture: style.Picture) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(picture.png(1.0)))).astype(int)


def test_a_picture_is_painted_in_the_language_and_remembers_english():
    with style.style():
        picture = style.Picture(4.0, 2.0, alt="probability")
        axes = picture.add_subplot()
        axes.set_xlabel("probability")
        axes.set_yticks([0.5], ["model alone"])
        axes.plot([0, 1], label="measured")
        axes.legend()
    english = drawn(picture)
    try:
        language.use("zh")
        translated, bundle = drawn(picture), picture._repr_mimebundle_()
    finally:
        language.use("en")
    assert np.abs(english - translated).sum() > 1000, "nothing was painted anew"
    assert bundle[0]["text/plain"] == bundle[1]["image/png"]["alt"] == "概率"
    assert axes.get_xlabel() == "probability" and picture.alt == "probability"
    assert np.array_equal(drawn(picture), english)


class Small(v.View):
    name = "Roofline explorer"

    def __init__(self):
        super().__init__()
        self.kind = v.dropdown("attention", ["unfused", "fused"], "fused")
        self.size = v.int_slider("beams", 3, 1, 8, "sequences at once")
        self.go = v.button("Undo", "take the last token back")
        self._assemble(v.row(self.kind, self.size), self.go)


def test_controls_speak_chinese_and_keep_their_values(chinese):
    small = Small()
    assert (small.kind.description, small.kind.value) == ("注意力", "fused")
    assert small.kind.options == (("未融合", "unfused"), ("融合", "fused"))
    assert (small.size.description, small.size.tooltip) == ("束宽", "同时处理的序列数")
    assert (small.go.description, small.go.tooltip) == ("撤销", "撤回最后一个词元")
    small.show(style.Picture(2.0, 1.0, alt="Next token"), "<p>probability</p>")
    assert small._text.value == "<p>概率</p>" and "下一词元" in small._spoken.value


def controls(root: ipywidgets.Widget):
    yield root
    for child in getattr(root, "children", ()):
        yield from controls(child)


MACHINES = {"A100", "H100", "H200", "RTX", "MI", "PCIe", "SXM", "Apple", "Pro", "Max", "small", "NVIDIA"}
MACHINES |= {"Intel", "Xeon", "Processor"}
OPERATIONS = {"MLP", "QKV", "RoPE", "SwiGLU"}
HERE = Ceilings("Intel(R) Xeon(R) Processor", 2**34, 2e10, 2e10, {"fp32": 3e11, "bf16": 2e11}, {})


@pytest.mark.parametrize("measured", [None, HERE], ids=["never measured", "measured"])
@pytest.mark.parametrize("name", ["BatchingTimeline", "MemoryCalculator", "RooflineExplorer", "TilePlayer"])
def test_no_control_of_a_widget_is_left_in_english(chinese, name, measured, monkeypatch):
    monkeypatch.setattr(machines, "stored_ceilings", lambda: measured)
    shown = getattr(widgets, name)()
    for control in controls(shown.widget):
        texts = [getattr(control, trait, "") for trait in ("description", "tooltip")]
        for text in filter(None, [*texts, *getattr(control, "_options_labels", ())]):
            assert set(left_in_english(str(text))) <= MACHINES, f"{type(control).__name__}: {text!r}"
    choice = getattr(shown, "machine", None)
    for machine in [] if choice is None else [value for _, value in choice.options]:
        choice.value = machine
        words = re.sub(r"<[^>]*>", " ", shown._text.value)
        assert set(left_in_english(words)) <= MACHINES | OPERATIONS, words
