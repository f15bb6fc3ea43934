"""A step of speculation as a picture: the drafts in their boxes, p and q below them, and where one fell.

Below the drafts stands what the text gains; the target's own token lies right under the draft that it
replaces. The bars are both distributions at that place, and what its correction is drawn from:
max(0, p − q) / Σ (Leviathan et al. 2023, section 2.3). For a bonus it is p itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.collections import LineCollection, PolyCollection

from llmcourse.figures import language
from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.figures.speculation_strip import ACCEPTED, ACCEPTED_EDGE, OWN, REJECTED, REJECTED_EDGE
from llmcourse.figures.speculation_trace import (
    ROWS,
    Candidate,
    Counts,
    Phase,
    SpeculationTrace,
    TracedDraft,
    TracedStep,
)

HEIGHT = 5.25
LEFT, RIGHT = 1.02, 8.52  # inches, of the boxes
MOST_DRAFTS = 16
LOOKS = {
    "proposed": {"facecolors": look.PAPER, "edgecolors": look.MUTED, "linestyles": "dashed"},
    "accepted": {"facecolors": ACCEPTED, "edgecolors": ACCEPTED_EDGE},
    "rejected": {"facecolors": REJECTED, "edgecolors": REJECTED_EDGE},
    "dropped": {"facecolors": look.PAPER, "edgecolors": look.LINE},
    "own": {"facecolors": OWN, "edgecolors": OWN},
}
VERDICTS = {"accepted": "✓ stands", "rejected": "✗ falls", "dropped": "dropped"}
BARS = {
    "p, the target": {"facecolor": look.KEPT, "edgecolor": look.KEPT},
    "q, the drafter": {"facecolor": look.CUT, "edgecolor": look.CUT_EDGE, "hatch": look.CUT_HATCH},
}
DRAFT_ROW, NUMBERS, GAINED_ROW = 0.02, 0.46, 1.22  # inches from the top of the boxes' axes
Box = list[tuple[int | float, int | float]]  # its corners
BOX, ROOM = 0.31, 1.66  # inches: a box is so high, all of them need so much


class SpeculationPlot:
    """The figure, made once and then redrawn for other phases: fast enough to follow a slider."""

    def __init__(self, rows: int = ROWS):
        self.rows = rows
        with look.style():
            self.figure = look.Picture(look.WIDTH, HEIGHT)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            place = (
                LEFT / look.WIDTH,
                1 - (0.78 + ROOM) / HEIGHT,
                (RIGHT - LEFT) / look.WIDTH,
                ROOM / HEIGHT,
            )
            self.boxes = self.figure.add_axes(place)
            self.boxes.set(xlim=(0, RIGHT - LEFT), ylim=(ROOM, 0))
            self.boxes.set_axis_off()
            bottom, height = 0.62 / HEIGHT, 1.80 / HEIGHT
            self.sides = self.figure.add_axes((0.150, bottom, 0.42, height))
            self.after = self.figure.add_axes((0.640, bottom, 0.35, height))
            self._make_boxes()
            self._make_bars()
            self._make_counts()
        boxes = (*self._boxes.values(), self._strikes, *self._drafts, *self._numbers, *self._gains)
        bars = (*self._bars.values(), self._after_bars, *self._names, *self._values, *self._after_values)
        heads = (self.subtitle, self._where, self._after_name, self._drawn, self._own_name, self._counts)
        self.figure.moving = [*boxes, *bars, *heads]

    def _make_boxes(self) -> None:
        axes, columns = self.boxes, range(MOST_DRAFTS + 1)
        self._boxes = {kind: PolyCollection([], linewidths=1.3, **style) for kind, style in LOOKS.items()}
        for boxes in self._boxes.values():
            axes.add_collection(boxes, autolim=False)
        self._strikes = LineCollection([], colors=REJECTED_EDGE, linewidths=1.1, zorder=4)
        axes.add_collection(self._strikes, autolim=False)
        middle = {"ha": "center", "va": "center", "size": 9.5, "zorder": 3}
        self._drafts = [axes.text(0, DRAFT_ROW + BOX / 2, "", **middle) for _ in columns[1:]]
        self._gains = [axes.text(0, GAINED_ROW + BOX / 2, "", **middle) for _ in columns]
        below = {"ha": "center", "va": "top", "size": 9, "linespacing": 1.45}
        self._numbers = [axes.text(0, NUMBERS, "", **below) for _ in columns[1:]]
        name = {"ha": "right", "size": 9, "color": look.MUTED, "linespacing": 1.45}
        axes.text(-0.1, DRAFT_ROW + BOX / 2, "drafts", va="center", **name)
        axes.text(-0.1, NUMBERS, "q\np\nmin(1, p/q)\nverdict", va="top", **name)
        axes.text(-0.1, GAINED_ROW + BOX / 2, "text gains", va="center", **name)
        own = {"size": 9.5, "color": OWN, "va": "center", "weight": "bold"}
        self._own_name = axes.text(0, GAINED_ROW + BOX / 2, "", **own)

    def _make_bars(self) -> None:
        """Their numbers stand beside them, so they need no axis, and fill it whatever they are."""
        for axes in (self.sides, self.after):
            axes.set(xlim=(0, 1.36), ylim=(self.rows + 0.6, -0.6))
            axes.set_axis_off()
        self._bars = {name: PolyCollection([], linewidth=0.7, **style) for name, style in BARS.items()}
        for bars in self._bars.values():
            self.sides.add_collection(bars, autolim=False)
        self._after_bars = PolyCollection([], facecolor=OWN, linewidth=0)
        self.after.add_collection(self._after_bars, autolim=False)
        beside, places = self.sides.get_yaxis_transform(), range(self.rows + 1)
        self._names = [
            self.sides.text(-0.03, y, "", ha="right", va="center", transform=beside) for y in places
        ]
        value = {"va": "center", "size": 9.5, "color": look.MUTED}
        self._values = [self.sides.text(0, y, "", **value) for y in places]
        self._after_values = [self.after.text(0, y, "", **value) for y in places]
        self._drawn = self.after.plot([], [], marker=9, color=look.ACCENT, markersize=8, clip_on=False)[0]
        above = {"size": 10.5, "weight": "bold", "va": "bottom"}
        top = (0.62 + 1.80 + 0.10) / HEIGHT
        self._where = self.figure.text(0.012, top, "", **above)
        self._after_name = self.figure.text(0.640, top, "", **above)
        self._make_key(0.42 / HEIGHT)

    def _make_key(self, bottom: float) -> None:
        for place, (name, options) in enumerate(BARS.items()):
            x, height = 0.150 + 0.17 * place, 0.12 / HEIGHT
            box = _box(x, bottom, 0.02, height)
            self.figure.add_artist(
                PolyCollection([box], transform=self.figure.transFigure, linewidth=0.7, **options)
            )
            self.figure.text(x + 0.027, bottom + height / 2, name, size=9.5, color=look.MUTED, va="center")

    def _make_counts(self) -> None:
        self._counts = self.figure.text(0.012, 0.145 / HEIGHT, "", size=9.5, va="center")

    def update(self, trace: SpeculationTrace, at: int, title: str = "") -> look.Picture:
        """Shows another phase; arguments as `plot_speculation`."""
        phase, title = trace.check(at), title or "Speculative decoding, phase by phase"
        step = trace.steps[phase.step]
        widest = max(len(one.drafts) for one in trace.steps)
        if widest > MOST_DRAFTS:
            raise ValueError(f"a step may have at most {MOST_DRAFTS} drafts, got {widest}; draft fewer")
        with look.style():
            self.title.set_text(readable(title))
            self.figure.still_key = title
            self.subtitle.set_text(readable(happens(trace, at)))
            columns = max(5, widest + 1)
            drafts = self._draw_drafts(step, phase, columns)
            gains = self._draw_gains(step, phase, columns)
            for kind, boxes in self._boxes.items():
                boxes.set_verts([*drafts[kind], *gains[kind]])
            self._draw_bars(step, phase)
            self._counts.set_text(told(phase.counts))
        self.figure.alt = f"{title}, phase {at + 1} of {len(trace.phases)}. {in_words(trace, at)}"
        return self.figure

    def _draw_drafts(self, step: TracedStep, phase: Phase, columns: int) -> dict[str, list[Box]]:
        """Writes into the boxes of the upper row, and returns them by what became of each."""
        pitch, judged = (RIGHT - LEFT) / columns, phase.kind != "draft"
        boxes = {kind: [] for kind in LOOKS}
        strikes = []
        shown = step.drafts[: phase.drafted]
        for column, (label, numbers) in enumerate(zip(self._drafts, self._numbers, strict=True)):
            draft, middle = (shown[column] if column < len(shown) else None), (column + 0.5) * pitch
            kind = draft.fate if draft and judged else "proposed"
            word = look.token(draft.word.label, _letters(pitch)) if draft else ""
            label.set(text=word, x=middle, color=_ink(kind))
            numbers.set(text=_numbers(draft, judged) if draft else "", x=middle, color=_ink(kind))
            if draft:
                boxes[kind].append(_box(middle - 0.46 * pitch, DRAFT_ROW, 0.92 * pitch, BOX))
            if kind == "rejected":
                y = DRAFT_ROW + BOX / 2
                strikes.append([(middle - 0.40 * pitch, y), (middle + 0.40 * pitch, y)])
        self._strikes.set_segments(strikes)
        return boxes

    def _draw_gains(self, step: TracedStep, phase: Phase, columns: int) -> dict[str, list[Box]]:
        """The same for the lower row."""
        pitch = (RIGHT - LEFT) / columns
        boxes = {kind: [] for kind in LOOKS}
        gained = _gained(step, phase)
        for column, label in enumerate(self._gains):
            kind, word = gained[column] if column < len(gained) else ("dropped", "")
            middle = (column + 0.5) * pitch
            label.set(text=look.token(word, _letters(pitch)), x=middle)
            label.set_color(look.PAPER if kind == "own" else look.INK)
            if word:
                boxes[kind].append(_box(middle - 0.46 * pitch, GAINED_ROW, 0.92 * pitch, BOX))
        beside = phase.kind == "target" and (columns - len(gained)) * pitch > 1.2  # inches
        self._own_name.set(text=f"◂ {_role(step)}" if beside else "", x=len(gained) * pitch)
        return boxes

    def _draw_bars(self, step: TracedStep, phase: Phase) -> None:
        judged, drawn = phase.kind != "draft" and step.own is not None, phase.kind == "target"
        listed = [*step.candidates, step.others] if judged else []
        self._where.set_text(readable(_where(step, phase)))
        name = "Drawn from max(0, p − q) / Σ" if step.fallen else "Drawn from p"
        self._after_name.set_text(name if drawn else "")
        shown = listed[:-1]
        scale = max((max(one.p, one.q) for one in shown), default=1.0)
        after_scale = max((one.p_after for one in shown), default=1.0)
        halves = ([one.p / scale for one in shown], -0.36), ([one.q / scale for one in shown], 0.02)
        for bars, (values, top) in zip(self._bars.values(), halves, strict=True):
            bars.set_verts([_box(0, y + top, value, 0.34) for y, value in enumerate(values) if value > 0])
        verts = [_box(0, y - 0.3, one.p_after / after_scale, 0.6) for y, one in enumerate(shown)]
        self._after_bars.set_verts(verts if drawn else [])
        self._write_rows(step, listed, scale, after_scale, drawn)

    def _write_rows(
        self, step: TracedStep, listed: Sequence[Candidate], scale: float, after_scale: float, drawn: bool
    ) -> None:
        own = step.own.token if step.own else None
        at = [y for y, one in enumerate(listed) if drawn and one.token == own]
        for y, name in enumerate(self._names):
            one = listed[y] if y < len(listed) else None
            listed_one = one is not None and one.token is not None  # else it has no bar
            name.set_text(look.token(one.label, 13) if listed_one else one.label if one else "")
            name.set_color(look.INK if listed_one else look.MUTED)
            end = max(one.p, one.q) / scale if listed_one else 0
            self._values[y].set(text=_pair(one, step) if one else "", x=end + 0.015)
            value = _share(one.p_after) if one and drawn else ""
            end = one.p_after / after_scale if listed_one else 0
            self._after_values[y].set(text=value, x=end + 0.015)
            self._after_values[y].set_color(look.ACCENT if y in at else look.MUTED)
        self._drawn.set_data([-0.055] * len(at), at)


def plot_speculation(trace: SpeculationTrace, at: int, title: str = "") -> look.Picture:
    """One phase of a trace.

    Args:
        at: of `trace.phases`, counted from 0.

    Raises:
        ValueError: there is no such phase, or a step has more drafts than fit side by side.
    """
    return SpeculationPlot().update(trace, at, title)


def happens(trace: SpeculationTrace, at: int) -> str:
    """What the phase does, in one line."""
    phase = trace.check(at)
    step = trace.steps[phase.step]
    if phase.kind == "draft":
        word = step.drafts[phase.drafted - 1].word.label
        return f"Draft {phase.drafted} of {len(step.drafts)}: the drafter proposes “{word}”."
    if phase.kind == "verdict":
        return f"The target reads all drafts in one pass: {_verdict(step)}."
    word = f"“{step.own.label}”"
    if step.fallen:
        return f"Correction: the target puts {word} in place of “{step.fallen.word.label}”."
    if step.drafts:
        return f"Bonus: all drafts stand, and the same pass of the target brings {word} as well."
    reader = "The target reads the prompt" if phase.step == 0 else "Nothing was drafted: the target reads on"
    return f"{reader} and writes {word}."


def in_words(trace: SpeculationTrace, at: int) -> str:
    """The picture in words: the phase, the drafts with p and q, the counts."""
    phase = trace.check(at)
    step, judged = trace.steps[phase.step], phase.kind != "draft"
    drafts = "; ".join(_draft_in_words(draft, judged) for draft in step.drafts[: phase.drafted])
    words = [happens(trace, at)] + ([f"Drafts: {drafts}."] if drafts else [])
    if judged and step.own is not None:
        likeliest = "; ".join(f"{language.own(one.label)} {_pair(one, step)}" for one in step.candidates[:4])
        words.append(f"{_where(step, phase)}: {likeliest}.")
    return " ".join([*words, f"{told(phase.counts)}."])


def told(counts: Counts) -> str:
    """The counts so far, in one line."""
    words = f"{counts.tokens} {'token' if counts.tokens == 1 else 'tokens'}"
    if counts.steps:
        words += f" · {counts.tokens_per_step:.2f} a step after the prompt"
    if counts.acceptance is None:
        return words
    return f"{words} · α = {counts.accepted} of {counts.judged} = {counts.acceptance:.2f}"


def _verdict(step: TracedStep) -> str:
    stood, total = len(step.accepted), len(step.drafts)
    if step.own is None:
        return f"{stood} of {total} stand, and the text ends among them"
    if step.fallen is None:
        return "the only one stands" if total == 1 else f"all {total} stand"
    return f"{stood} of {total} stand, “{step.fallen.word.label}” falls"


def _draft_in_words(draft: TracedDraft, judged: bool) -> str:
    label = language.own(draft.word.label)
    if not judged:
        return f"{label} with q {_share(draft.q)}"
    if draft.fate == "dropped":
        return f"{label} with q {_share(draft.q)}, dropped"
    sides = f"q {_share(draft.q)}, p {_share(draft.p)}"
    return f"{label} with {sides}, {VERDICTS[draft.fate].split()[-1]}"


def _where(step: TracedStep, phase: Phase) -> str:
    if phase.kind == "draft":
        return "What the target says is not known yet"
    if step.own is None:
        return "The text has ended"
    if step.fallen:
        return f"Where “{look.shorten(step.fallen.word.label, 14)}” fell: p · q"
    return "After the last draft: p" if step.drafts else "After the text: p"


def _role(step: TracedStep) -> str:
    return "correction" if step.fallen else "bonus" if step.drafts else "the target's own"


def _gained(step: TracedStep, phase: Phase) -> list[tuple[str, str]]:
    """Kind and label of each box of the lower row."""
    if phase.kind == "draft":
        return []
    stood = [("accepted", draft.word.label) for draft in step.accepted]
    return stood + ([("own", step.own.label)] if phase.kind == "target" else [])


def _numbers(draft: TracedDraft, judged: bool) -> str:
    if not judged:
        return _share(draft.q)
    judgement = f"{_share(draft.p)}\n{draft.chance:.2f}"
    if draft.fate == "dropped":  # a p after a text that is none: nothing is asked of it
        judgement = "–\n–"
    return f"{_share(draft.q)}\n{judgement}\n{VERDICTS[draft.fate]}"


def _pair(one: Candidate, step: TracedStep) -> str:
    return f"{_share(one.p)} · {_share(one.q)}" if step.fallen else _share(one.p)


def _ink(kind: str) -> str:
    return {"rejected": REJECTED_EDGE, "dropped": look.MUTED}.get(kind, look.INK)


def _letters(pitch: float) -> int:
    """How many letters a box has room for."""
    return max(2, int(0.92 * pitch / 0.088))


def _share(p: float) -> str:
    return look.percent(p) if p > 0 else "0"


def _box(left: int | float, top: int | float, width: int | float, height: int | float) -> Box:
    right, bottom = left + width, top + height
    return [(left, top), (right, top), (right, bottom), (left, bottom)]
