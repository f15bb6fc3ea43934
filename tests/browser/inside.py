"""What the kernel tells of the views in it: which there are, their controls, and what they must show."""

from IPython import get_ipython
from ipywidgets import (
    BoundedFloatText,
    BoundedIntText,
    Button,
    Dropdown,
    FloatSlider,
    IntSlider,
    Play,
    SelectionSlider,
    Textarea,
    Widget,
)

from llmcourse.decoding import DecodingError
from llmcourse.figures.widgets.view import View
from tests.browser import pure

KINDS = {  # by the class that the page gives them
    "widget-slider": (IntSlider, FloatSlider, SelectionSlider),
    "widget-dropdown": (Dropdown,),
    "widget-text": (BoundedIntText, BoundedFloatText),
    "widget-textarea": (Textarea,),
    "widget-button": (Button,),
    "widget-play": (Play,),
}


def view(count: int) -> View:
    """The view that the cell of this execution count ended with."""
    return get_ipython().user_ns["Out"][count]


def views() -> dict[int, str]:
    """The class of each view that a cell ended with, by the cell's execution count."""
    out = get_ipython().user_ns["Out"]
    return {count: type(value).__name__ for count, value in out.items() if isinstance(value, View)}


def answer(count: int) -> dict[str, str]:
    """`pure.answer`, or what is wrong with the input, as the view must say it."""
    try:
        return pure.answer(view(count))
    except (ValueError, DecodingError) as error:
        return {"complaint": str(error)}


def controls(count: int) -> list[dict]:
    """Every control of a view from top to bottom: kind, name, whether it sleeps, and what it reads."""
    found = [control for row in view(count).widget.children for control in _leaves(row)]
    return [
        {
            "kind": _kind(control),
            "name": control.description,
            "disabled": control.disabled,
            "reads": _reads(control),
        }
        for control in found
    ]


def _leaves(widget: Widget) -> list[Widget]:
    below = [leaf for child in getattr(widget, "children", ()) for leaf in _leaves(child)]
    is_control = hasattr(widget, "disabled")
    return [*below, *([widget] if is_control else [])]


def _kind(control: Widget) -> str:
    for kind, classes in KINDS.items():
        if isinstance(control, classes):
            return kind
    raise TypeError(f"no way is known to move a {type(control).__name__}; add one to tests/browser/moves.py")


def _reads(control: Widget) -> str:
    """What stands in a control, in the words of the page."""
    if isinstance(control, SelectionSlider | Dropdown):  # its label is empty until it first moves
        return "" if control.index is None else control._options_labels[control.index]
    if isinstance(control, FloatSlider | IntSlider):
        return format(control.value, control.readout_format)
    if isinstance(control, BoundedFloatText | BoundedIntText):
        return f"{control.value:g}"
    return control.value if isinstance(control, Textarea) else ""
