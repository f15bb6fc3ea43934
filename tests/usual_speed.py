"""How fast this machine is just now: a core that is shared may be half as fast a minute later.

Both are times of one thread over the usual ones, at least 1. A loop is what the interpreter can do; what
draws also waits for memory, which others use as well, and is not slowed down alike.
"""

import time
from functools import cache

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# On the cores that the bounds were set on; a laptop is faster.
LOOP_S = 0.0075
PAGE_S = 0.020


def slowness() -> float:
    """Of a loop."""
    start = time.thread_time()
    sum(i * i for i in range(10**5))
    return max(1.0, (time.thread_time() - start) / LOOP_S)


def slowness_of_drawing() -> float:
    """Of a page of text, drawn by Matplotlib alone."""
    canvas = _page()
    start = time.thread_time()
    canvas.draw()
    return max(1.0, (time.thread_time() - start) / PAGE_S)


@cache
def _page() -> FigureCanvasAgg:
    page = Figure((8, 4), dpi=200)
    for line in range(10):
        page.text(0.1, 0.05 + 0.09 * line, f"line {line} of a page", size=9)
    canvas = FigureCanvasAgg(page)
    canvas.draw()  # loads its font
    return canvas
