"""What a page shows while an answer is computed, and what a screen reader calls the controls."""

import html

import pytest

from llmcourse.figures import language
from llmcourse.figures.widgets.page_code import BUSY_CLASS, naming
from llmcourse.figures.widgets.view import View
from tests.browser.browser import headless


def test_a_note_is_there_while_something_is_computed():
    view = View()
    with view.busy("Computing …"):
        assert BUSY_CLASS in view._message.value and "Computing …" in view._message.value
        assert 'role="status"' in view._message.value and "<progress" not in view._message.value
    assert view._message.value == ""


def test_an_interrupt_leaves_no_note():
    view = View()
    with pytest.raises(KeyboardInterrupt), view.busy():
        raise KeyboardInterrupt
    assert view._message.value == ""


def test_what_has_an_end_has_a_bar():
    view = View()
    view.say_busy("Computing …", 3, 21)
    assert '<progress value="3" max="21">' in view._message.value
    assert "opacity:1" in view._message.value and 'role="status"' not in view._message.value


@pytest.fixture(scope="module")
def page():
    """The markup that ipywidgets 8 makes for a slider and a play control, within a view."""
    with headless() as browser:
        page = browser.new_page()
        page.set_content(PAGE)
        page.evaluate("styles => { fonts.innerHTML = styles; }", View()._fonts.value)
        yield page


SLIDER = """<div class="widget-slider"><label class="widget-label">top-p</label>
<div class="slider-container"><div class="noUi-handle" role="slider" tabindex="0" aria-valuetext="7"></div>
</div><div class="widget-readout" contenteditable="true">0.30</div></div>"""
PAGE = f"""<div class="llmcourse-view"><div id="rows">{SLIDER}</div>
<div class="widget-play"><button><i class="fa fa-play"></i></button>
<button><i class="fa fa-stop"></i></button></div>
<div id="fonts"></div><div id="message"></div><p id="picture">Picture</p></div>"""


def test_a_handle_has_the_sliders_name_and_says_its_value_as_written(page):
    handle = page.get_by_role("slider", name="top-p")
    assert handle.get_attribute("aria-valuetext") == "0.30"
    assert page.locator(".widget-readout").first.get_attribute("aria-label") == "top-p"
    page.evaluate("document.querySelector('.widget-readout').textContent = '0.40'")
    page.wait_for_function("document.querySelector('.noUi-handle').getAttribute('aria-valuetext') == '0.40'")


def test_a_slider_that_comes_later_is_named_too(page):
    late = SLIDER.replace("top-p", "late")
    page.evaluate("late => { rows.insertAdjacentHTML('beforeend', late); }", late)
    assert page.get_by_role("slider", name="late").get_attribute("aria-valuetext") == "0.30"


def test_buttons_of_a_play_control_are_called_what_they_do(page):
    assert page.get_by_role("button", name="play").count() == 1
    page.evaluate("document.querySelector('.fa-play').className = 'fa fa-pause'")
    page.get_by_role("button", name="pause").wait_for()
    assert page.get_by_role("button", name="stop").count() == 1


def test_the_note_comes_late_and_moves_nothing(page):
    where = "document.getElementById('picture').getBoundingClientRect().top"
    before = page.evaluate(where)
    view = View()
    view.say_busy("Computing …")
    opacity = f"getComputedStyle(document.querySelector('.{BUSY_CLASS}')).opacity"
    page.evaluate("note => { message.innerHTML = note; }", view._message.value)
    assert page.evaluate(where) == before
    page.wait_for_function(f"{opacity} == '1'")
    animation = f"getComputedStyle(document.querySelector('.{BUSY_CLASS}')).animationDelay"
    assert page.evaluate(animation) == "0.2s"


def test_names_are_told_in_the_language_that_is_chosen(monkeypatch):
    monkeypatch.setattr(language, "_chosen", ["zh"])
    assert "播放" in naming() and "暂停" in html.unescape(View()._fonts.value)
