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


def plot_contrast(
    data: Contrast, title: str = "Expert minus amateur", *, expert: str = "expert", amateur: str = "amateur"
) -> look.Picture:
    """Paired bars of both models with the plausibility cut, and the score beside them."""
    rows = len(data.labels)
    with look.style():
        height = 1.35 + 0.36 * rows
        picture = look.Picture(look.WIDTH, height)
        look.heading(picture, title, data.summary)
        bottom, tall = 0.47 / height, 1 - 1.45 / height
        pairs = picture.add_axes((0.155, bottom, 0.49, tall))
        score = picture.add_axes((0.70, bottom, 0.285, tall))
        _draw_pairs(pairs, data, expert, amateur)
        _draw_scores(score, data)
        details = "; ".join(_sentence(data, row) for row in range(min(rows, 5)))
        picture.alt = f"{title}: {data.summary}. {details}"
    return picture


def _sentence(data: Contrast, row: int) -> str:
    score = f"score {data.scores[row]:.2f}" if data.plausible[row] else "implausible"
    expert, amateur = look.percent(data.expert[row]), look.percent(data.amateur[row])
    return f"{language.own(data.labels[row])}: expert {expert}, amateur {amateur}, {score}"


AMATEUR = {"facecolor": "#f2c879", "edgecolor": "#9c6c14", "linewidth": 0.7}


def _draw_pairs(axes, data: Contrast, expert: str, amateur: str) -> None:
    rows = range(len(data.labels))
    fills = [look.SERIES[0] if kept else "#a9bccd" for kept in data.plausible]
    axes.barh([row - 0.19 for row in rows], data.expert, height=0.36, color=fills)
    axes.barh([row + 0.19 for row in rows], data.amateur, height=0.36, **AMATEUR)
    widest = max(*data.expert, *data.amateur)
    values = {"size": 8, "va": "center_baseline", "color": look.MUTED}
    for row in rows:
        for value, shift in ((data.expert[row], -0.19), (data.amateur[row], 0.19)):
            text = axes.text(value + widest * 0.01, row + shift, look.percent(value), **values)
            text.set_bbox({"facecolor": look.PAPER, "edgecolor": "none", "pad": 0.6})
    axes.axvline(data.cut, color=look.ACCENT, linewidth=1.2, linestyle=(0, (4, 2)), zorder=0)
    axes.text(
        data.cut, -0.62, f" plausible from {look.percent(data.cut)}", color=look.ACCENT, size=9, va="bottom"
    )
    axes.set(xlim=(0, widest * 1.13), ylim=(len(data.labels) - 0.4, -0.6), xlabel="probability")
    axes.set_yticks(rows, [look.token(label, 13) for label in data.labels])
    for label, kept, token in zip(axes.get_yticklabels(), data.plausible, data.token_ids, strict=True):
        label.set_color(look.INK if kept else look.MUTED)
        if token in (data.expert_choice, data.contrastive_choice):
            label.set_weight("bold")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    look.bare(axes, "left")
    look.fix_label(axes)
    names = ((expert, look.SERIES[0]), (amateur, AMATEUR["edgecolor"]))
    for place, (name, color) in enumerate(names):
        y = 0.13 - 0.085 * place
        axes.text(0.985, y, f"■ {readable(name)}", color=color, ha="right", transform=axes.transAxes)


def _draw_scores(axes, data: Contrast) -> None:
    finite = [score for score in data.scores if math.isfinite(score)] or [0.0]
    far = max(0.1, *(abs(score) for score in finite))
    axes.axvline(0, color=look.LINE, linewidth=0.8)
    for row, (score, token) in enumerate(zip(data.scores, data.token_ids, strict=True)):
        if score == -math.inf:
            axes.text(far * 0.03, row, "cut", size=8.5, color=look.CUT_EDGE, va="center")
            continue
        chosen = token == data.contrastive_choice
        color = look.ACCENT if chosen else look.KEPT
        length = max(-far, min(far, score))  # +inf, where the amateur rules the token out, ends here too
        axes.barh(row, length, height=0.5, color=color)
        text = {"size": 8.5, "va": "center", "ha": "left" if score >= 0 else "right", "color": color}
        mark = f"{score:+.2f}".replace("-", "−") + (" ◀" if chosen else "")
        axes.text(length + math.copysign(far * 0.03, score), row, mark, **text)
    left = -far * 1.3 if min(finite) < 0 else 0
    axes.set(xlim=(left, far * 1.42), ylim=(len(data.labels) - 0.4, -0.6), yticks=[])
    axes.set_xlabel("score: ln expert − ln amateur")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    look.bare(axes, "left")
    look.fix_label(axes)
