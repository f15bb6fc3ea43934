"""Contrastive decoding in one picture: what expert and amateur say, and what their difference picks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from llmcourse.decoding.contrastive import contrastive_logits
from llmcourse.figures import language
from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable


@dataclass(frozen=True)
class Contrast:
    """The tokens that matter at one step: plausible ones by score, then the likeliest of the rest."""

    token_ids: tuple[int, ...]
    labels: tuple[str, ...]
    expert: tuple[float, ...]
    amateur: tuple[float, ...]
    scores: tuple[float, ...]  # -inf where the expert finds the token implausible
    cut: float  # the probability that the expert must give: alpha times its highest
    num_plausible: int
    expert_choice: int  # token ids
    contrastive_choice: int

    @property
    def plausible(self) -> tuple[bool, ...]:
        return tuple(score > -math.inf for score in self.scores)

    def label_of(self, token: int) -> str:
        return self.labels[self.token_ids.index(token)]

    @property
    def summary(self) -> str:
        expert, both = (
            language.own(self.label_of(token)) for token in (self.expert_choice, self.contrastive_choice)
        )
        changed = f"expert alone: {expert} → contrastive: {both}"
        verdict = f"both choose {expert}" if expert == both else changed
        tokens = "token" if self.num_plausible == 1 else "tokens"
        return f"{verdict} · {self.num_plausible:,} plausible {tokens}"


def contrast(
    expert_logits: Float[Tensor, " V"],
    amateur_logits: Float[Tensor, " V"],
    label: Callable[[int], str],
    alpha: float = 0.1,
    amateur_temperature: float = 1.0,
    rows: int = 12,
) -> Contrast:
    """The data of the figure; `alpha` and `amateur_temperature` as in `contrastive_logits`."""
    pair = expert_logits[None].double(), amateur_logits[None].double()
    scores = contrastive_logits(*pair, alpha=alpha, amateur_temperature=amateur_temperature)[0]
    expert = pair[0][0].softmax(-1)
    amateur = (pair[1][0] / amateur_temperature).softmax(-1)
    choices = int(expert.argmax()), int(scores.argmax())
    shown = _rows(expert, scores, choices, rows)
    return Contrast(
        token_ids=tuple(shown),
        labels=tuple(label(token) for token in shown),
        expert=tuple(expert[shown].tolist()),
        amateur=tuple(amateur[shown].tolist()),
        scores=tuple(scores[shown].tolist()),
        cut=alpha * expert.max().item(),
        num_plausible=int((scores > -torch.inf).sum()),
        expert_choice=choices[0],
        contrastive_choice=choices[1],
    )


def _rows(expert: Tensor, scores: Tensor, choices: tuple[int, int], rows: int) -> list[int]:
    """Both choices always; then the expert's likeliest; ordered by the expert's probability."""
    likeliest = expert.sort(descending=True, stable=True).indices[:rows].tolist()
    missing = [token for token in dict.fromkeys(choices) if token not in likeliest]
    shown = likeliest[: rows - len(missing)] + missing
    return sorted(shown, key=lambda token: (-expert[token].item(), token))


AMATEUR = {"facecolor": "#f2c879", "edgecolor": "#9c6c14", "linewidth": 0.7}


class ContrastPlot:
    """The figure, made once and then redrawn for other tokens: it follows a slider.

    Args:
        rows: tokens that are shown.
    """

    def __init__(self, rows: int):
        self.rows = rows
        self._height = 1.35 + 0.36 * rows
        bottom, tall = 0.47 / self._height, 1 - 1.45 / self._height
        with look.style():
            self.figure = look.Picture(look.WIDTH, self._height)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            self.pairs = self.figure.add_axes((0.155, bottom, 0.49, tall))
            self.scores = self.figure.add_axes((0.70, bottom, 0.285, tall))
            self._make_pairs()
            self._make_scores()
        self.figure.moving = [
            *(self._cut, *self.expert, *self.amateur, *self._values, *self.names, self._cut_name),
            *(*self._models, *self.bars, *self._marks, self.title, self.subtitle),
        ]

    def _make_pairs(self) -> None:
        axes, none, rows = self.pairs, [0] * self.rows, range(self.rows)
        self._cut = axes.axvline(0, color=look.ACCENT, linewidth=1.2, linestyle=(0, (4, 2)), zorder=0)
        self.expert = axes.barh([row - 0.19 for row in rows], none, height=0.36)
        self.amateur = axes.barh([row + 0.19 for row in rows], none, height=0.36, **AMATEUR)
        said = {"size": 9, "va": "center_baseline", "color": look.MUTED}
        said |= {"bbox": {"facecolor": look.PAPER, "edgecolor": "none", "pad": 0.6}}
        self._values = [axes.text(0, row + by, "", **said) for row in rows for by in (-0.19, 0.19)]
        beside = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center_baseline"}
        self.names = [axes.text(-0.012, row, "", size=10, **beside) for row in rows]
        self._cut_name = axes.text(0, -0.62, "", color=look.ACCENT, size=9.5, va="bottom")
        inside = {"ha": "right", "transform": axes.transAxes}
        places = ((0.13, look.SERIES[0]), (0.045, AMATEUR["edgecolor"]))
        self._models = [axes.text(0.985, y, "", color=color, **inside) for y, color in places]
        axes.set(ylim=(self.rows - 0.4, -0.6), xlabel="probability", yticks=[])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        look.bare(axes, "left")
        look.fix_label(axes)

    def _make_scores(self) -> None:
        axes, rows = self.scores, range(self.rows)
        axes.axvline(0, color=look.LINE, linewidth=0.8)
        self.bars = axes.barh(list(rows), [0] * self.rows, height=0.5)
        self._marks = [axes.text(0, row, "", size=9.5, va="center") for row in rows]
        axes.set(ylim=(self.rows - 0.4, -0.6), yticks=[], xlabel="score: ln expert − ln amateur")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        look.bare(axes, "left")
        look.fix_label(axes)

    def update(
        self, data: Contrast, title: str = "Expert minus amateur", *, expert: str, amateur: str
    ) -> look.Picture:
        """Shows other tokens.

        Raises:
            ValueError: more or fewer of them than the figure has rows.
        """
        if len(data.labels) != self.rows:
            raise ValueError(
                f"data must be of {self.rows} tokens, got {len(data.labels)}; make another figure"
            )
        with look.style():
            self.title.set_text(readable(title))
            self.subtitle.set_text(readable(data.summary))
            for text, name in zip(self._models, (expert, amateur), strict=True):
                text.set_text(f"■ {readable(name)}")
            self.figure.still_key = self._draw_pairs(data), self._draw_scores(data)
        details = "; ".join(_sentence(data, row) for row in range(min(self.rows, 5)))
        self.figure.alt = f"{title}: {data.summary}. {details}"
        return self.figure

    def _draw_pairs(self, data: Contrast) -> float:
        """Returns where the axis ends, which is part of what is still."""
        widest = max(*data.expert, *data.amateur)
        for row, kept in enumerate(data.plausible):
            self.expert[row].set_width(data.expert[row])
            self.expert[row].set_facecolor(look.SERIES[0] if kept else "#a9bccd")
            self.amateur[row].set_width(data.amateur[row])
            pair = zip(
                self._values[2 * row : 2 * row + 2], (data.expert[row], data.amateur[row]), strict=True
            )
            for text, value in pair:
                text.set_x(value + widest * 0.01)
                text.set_text(look.percent(value))
            chosen = data.token_ids[row] in (data.expert_choice, data.contrastive_choice)
            name = {"color": look.INK if kept else look.MUTED, "weight": "bold" if chosen else "normal"}
            self.names[row].set(text=look.token(data.labels[row], 13), **name)
        self._cut.set_xdata([data.cut, data.cut])
        self._cut_name.set_x(data.cut)
        self._cut_name.set_text(f" plausible from {look.percent(data.cut)}")
        self.pairs.set_xlim(0, widest * 1.13)
        return widest

    def _draw_scores(self, data: Contrast) -> tuple[float, float]:
        finite = [score for score in data.scores if math.isfinite(score)] or [0.0]
        far = max(0.1, *(abs(score) for score in finite))
        for row, (score, token) in enumerate(zip(data.scores, data.token_ids, strict=True)):
            bar, mark, cut = self.bars[row], self._marks[row], score == -math.inf
            bar.set_visible(not cut)
            if cut:
                mark.set(x=far * 0.03, text="cut", color=look.CUT_EDGE, ha="left")
                continue
            chosen = token == data.contrastive_choice
            color = look.ACCENT if chosen else look.KEPT
            length = max(-far, min(far, score))  # +inf, where the amateur rules the token out, ends here too
            bar.set(width=length, color=color)
            said = f"{score:+.2f}".replace("-", "−") + (" ◀" if chosen else "")
            beyond = length + math.copysign(far * 0.03, score)
            mark.set(x=beyond, text=said, color=color, ha="left" if score >= 0 else "right")
        limits = -far * 1.3 if min(finite) < 0 else 0.0, far * 1.42
        self.scores.set_xlim(*limits)
        return limits


def plot_contrast(
    data: Contrast, title: str = "Expert minus amateur", *, expert: str = "expert", amateur: str = "amateur"
) -> look.Picture:
    """Paired bars of both models with the plausibility cut, and the score beside them."""
    return ContrastPlot(len(data.labels)).update(data, title, expert=expert, amateur=amateur)


def _sentence(data: Contrast, row: int) -> str:
    score = f"score {data.scores[row]:.2f}" if data.plausible[row] else "implausible"
    expert, amateur = look.percent(data.expert[row]), look.percent(data.amateur[row])
    return f"{language.own(data.labels[row])}: expert {expert}, amateur {amateur}, {score}"
