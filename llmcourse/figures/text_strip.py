"""A text with every token on the colour of its probability: pale where expected, dark where surprising."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmcourse.figures.fonts import WEB_FAMILIES, chinese, web_font
from llmcourse.tokenizer import Tokenizer

# From paper white to brown: lightness falls steadily, so the order survives grey printing.
SHADES = ("#ffffff", "#fbe9d7", "#f5cfa6", "#eaa765", "#cf7430", "#96420f")
BITS_PER_SHADE = 2.0


@dataclass(frozen=True)
class StripPiece:
    """A stretch of text that one token wrote, or several where a character is cut in two."""

    text: str
    probability: float  # the product, where several tokens wrote it
    special: bool = False  # such as <|endoftext|>: shown, but no part of the text


@dataclass(frozen=True)
class TextStrip:
    """Shows itself in a notebook; as text it is the text alone."""

    prompt: str
    pieces: tuple[StripPiece, ...]

    @property
    def text(self) -> str:
        return self.prompt + "".join(piece.text for piece in self.pieces if not piece.special)

    def _repr_html_(self) -> str:
        return strip_html(self)

    def __repr__(self) -> str:
        return self.text


def text_strip(
    tokenizer: Tokenizer, tokens: Sequence[int], log_probs: Sequence[float], prompt: str = ""
) -> TextStrip:
    """The pieces of a generated text; tokens that leave a character unfinished join the next one.

    Args:
        log_probs: of each token, as `Generation.log_probs` holds them.

    Raises:
        ValueError: as many tokens as log-probabilities are needed.
    """
    if len(tokens) != len(log_probs):
        raise ValueError(f"log_probs must have {len(tokens)} entries, one a token, got {len(log_probs)}")
    stream, pieces, waiting = tokenizer.stream(), [], []
    for token, log_prob in zip(tokens, log_probs, strict=True):
        if tokenizer.decode([int(token)]) == "":  # half a character would decode to U+FFFD
            pieces.append(StripPiece(tokenizer.label(int(token)), math.exp(log_prob), special=True))
            continue
        waiting.append(log_prob)
        if text := stream.push(int(token)):
            pieces.append(StripPiece(text, math.exp(sum(waiting))))
            waiting = []
    if waiting:
        pieces.append(StripPiece("\N{REPLACEMENT CHARACTER}", math.exp(sum(waiting))))
    return TextStrip(prompt, tuple(pieces))


def shade(probability: float) -> int:
    """Which of `SHADES` a probability takes: one step for every two bits of surprise, -log2 p."""
    if probability <= 0:
        return len(SHADES) - 1
    return min(len(SHADES) - 1, int(-math.log2(min(1.0, probability)) / BITS_PER_SHADE))


def strip_html(strip: TextStrip, legend: bool = True, font: bool = True) -> str:
    """Self-contained HTML: nothing of the text is taken for markup.

    Args:
        font: whether to bring the Chinese characters along, for machines without a Chinese font.
    """
    frame = (
        "background:#fff;color:#1d2733;border:1px solid #c9d0d8;border-radius:6px;padding:10px 14px;"
        f"font:15px/1.9 {WEB_FAMILIES};"
        "white-space:pre-wrap;overflow-wrap:anywhere"
    )
    prompt = f'<span style="color:#55606c">{html.escape(strip.prompt)}</span>'
    body = "".join(_piece_html(piece) for piece in strip.pieces)
    css = web_font(chinese(strip.text)) if font else ""
    style = f"<style>{css}</style>" if css else ""
    return f'{style}<div style="{frame}">{prompt}{body}{_legend_html() if legend else ""}</div>'


def _piece_html(piece: StripPiece) -> str:
    name = f"{piece.text!r}: {piece.probability:.2%}"
    # The line break stays outside the coloured box, which would otherwise be split by it.
    body = html.escape(piece.text.rstrip("\n")) or "⏎"
    breaks = "\n" * (len(piece.text) - len(piece.text.rstrip("\n")))
    return (
        f'<span title="{html.escape(name)}" style="{_paint(shade(piece.probability))}">{body}</span>{breaks}'
    )


def _paint(index: int) -> str:
    ink = "#fff" if index >= len(SHADES) - 1 else "#1d2733"
    return f"background:{SHADES[index]};color:{ink};border-radius:3px;padding:1px 0"


def _legend_html() -> str:
    names = [f"over {100 * 2 ** -(BITS_PER_SHADE * (i + 1)):.2g}%" for i in range(len(SHADES) - 1)] + ["less"]
    keys = " ".join(
        f'<span style="{_paint(i)};padding:1px 6px;border:1px solid #e6e9ec">{name}</span>'
        for i, name in enumerate(names)
    )
    return f'<div style="margin-top:8px;font-size:12px;color:#55606c">probability: {keys}</div>'
