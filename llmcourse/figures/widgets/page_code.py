"""What a view brings to the page beside its controls: its looks, and the few lines of JavaScript it needs.

ipywidgets ties the name of a slider to no handle, and calls the buttons of a play control nothing at all; a
screen reader then says a number alone. Nothing can be done about that from Python.
"""

from __future__ import annotations

import html
import json

from llmcourse.figures import language
from llmcourse.figures.fonts import WEB_FAMILIES

VIEW_CLASS = "llmcourse-view"
FORMER_CLASS = "llmcourse-former"  # a picture and a text that do not belong to the controls as they stand
BUSY_CLASS = "llmcourse-busy"  # comes where an answer takes longer than that, and moves nothing on the page
BUSY_AFTER_S = 0.2
VIEW_CSS = (
    f".{VIEW_CLASS} :is(textarea, select, table, button, .widget-label) {{font-family: {WEB_FAMILIES}}} "
    f".{VIEW_CLASS} .widget-html-content {{min-width: 0}} "  # lines end with the page, not with a wide table
    f".{FORMER_CLASS} {{opacity: 0.3; filter: grayscale(1)}} "
    f".{BUSY_CLASS} {{position: absolute; z-index: 1; opacity: 0; padding: 6px 12px; color: #1d2733; "
    "background: #eef4fa; border-left: 4px solid #3f7fb5; "
    f"animation: llmcourse-appear 0.1s {BUSY_AFTER_S}s forwards}} "
    f".{BUSY_CLASS} progress {{width: 160px; margin-left: 10px; vertical-align: middle}} "
    "@keyframes llmcourse-appear {to {opacity: 1}}"
)
# A handle is called as its slider, and its value is said as it is written beside it, which for a choice of
# numbers is not its place among them. Controls may come later than the view, hence the observer. Pages where
# no script may run keep what ipywidgets gives them.
NAMING = """
const view = this.closest('.VIEW');
if (view && !view.namesControls) {
  view.namesControls = true;
  const tell = (part, what, text) => part && text && part.setAttribute(what, text);
  const name = () => {
    for (const row of view.querySelectorAll('.widget-slider')) {
      const label = row.querySelector('.widget-label'), handle = row.querySelector('.noUi-handle');
      const value = row.querySelector('.widget-readout');
      tell(handle, 'aria-label', label && label.textContent);
      tell(value, 'aria-label', label && label.textContent);
      tell(handle, 'aria-valuetext', value && value.textContent);
    }
    for (const [icon, text] of Object.entries(BUTTONS))
      for (const sign of view.querySelectorAll('.widget-play .fa-' + icon))
        tell(sign.closest('button'), 'aria-label', text);
  };
  name();
  const all = {childList: true, subtree: true, characterData: true, attributeFilter: ['class']};
  new MutationObserver(name).observe(view, all);
}
"""


def naming() -> str:
    """`NAMING` for the language that is chosen."""
    buttons = {icon: language.text(icon) for icon in ("play", "pause", "stop")}
    return NAMING.replace("VIEW", VIEW_CLASS).replace("BUTTONS", json.dumps(buttons, ensure_ascii=False))


def styles() -> str:
    """The element that brings both, for the page's HTML."""
    return f'<style onload="{html.escape(naming())}">{VIEW_CSS}</style>'
