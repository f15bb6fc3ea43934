"""The controls of a view."""

from ipywidgets.widgets.widget_description import DescriptionWidget

from llmcourse.figures.widgets.view import View


def described(view: View) -> list[DescriptionWidget]:
    """Those in its rows that can have a name beside them."""
    rows = [child for row in view.widget.children for child in getattr(row, "children", ())]
    return [widget for widget in rows if isinstance(widget, DescriptionWidget)]
