"""A text with every token on the colour of its probability: pale where expected, dark where surprising."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmcourse.figures import language
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
        return language.page(strip_html(self))

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
    body = unmarked_html(strip.prompt) + "".join(_piece_html(piece) for piece in strip.pieces)
    return framed_html(body + (_legend_html() if legend else ""), strip.text if font else "")


def framed_html(body: str, text: str) -> str:
    """A strip's frame around HTML, and the font that brings the Chinese characters of `text`, if any."""
    frame = (
        "background:#fff;color:#1d2733;border:1px solid #c9d0d8;border-radius:6px;padding:10px 14px;"
        f"font:15px/1.9 {WEB_FAMILIES};"
        "white-space:pre-wrap;overflow-wrap:anywhere"
    )
    css = web_font(chinese(text))
    style = f"<style>{css}</style>" if css else ""
    return f'{style}<div style="{frame}">{body}</div>'


def unmarked_html(text: str) -> str:
    """What stood before, in a quieter colour."""
    return f'<span translate="no" style="color:#55606c">{html.escape(text)}</span>'


def boxed_html(text: str, name: str, style: str, tag: str = "span") -> str:
    """A piece of the text in a box; line breaks at its end stay outside, as they would split it."""
    inside = text.rstrip("\n")
    opening = f'<{tag} translate="no" title="{html.escape(name)}" style="{style}">'
    box = f"{opening}{html.escape(inside) or '⏎'}</{tag}>"
    return box + "\n" * (len(text) - len(inside))


def keys_html(keys: str) -> str:
    """The line below a strip that says what its boxes mean."""
    return f'<div style="margin-top:8px;font-size:12px;color:#55606c">{keys}</div>'


def _piece_html(piece: StripPiece) -> str:
    name = f"{piece.text!r}: {piece.probability:.2%}"
    return boxed_html(piece.text, name, _paint(shade(piece.probability)))


def _paint(index: int) -> str:
    ink = "#fff" if index >= len(SHADES) - 1 else "#1d2733"
    return f"background:{SHADES[index]};color:{ink};border-radius:3px;padding:1px 0"


def _legend_html() -> str:
    names = [f"over {100 * 2 ** -(BITS_PER_SHADE * (i + 1)):.2g}%" for i in range(len(SHADES) - 1)] + ["less"]
    keys = " ".join(
        f'<span style="{_paint(i)};padding:1px 6px;border:1px solid #e6e9ec">{name}</span>'
        for i, name in enumerate(names)
    )
    return keys_html(f"probability: {keys}")
