"""A text that fills in, as HTML: what stands, what came in this pass, and what is open."""

from __future__ import annotations

import html
from collections.abc import Sequence

from llmcourse.figures import language
from llmcourse.figures.block_filling import Filling, words_of
from llmcourse.figures.text_strip import boxed_html, framed_html, keys_html, unmarked_html
from llmcourse.tokenizer import Tokenizer

OPEN = "▢"
STYLES = {
    "stands": "background:#e3eef7;color:#1d2733;border-radius:3px;padding:1px 0",
    "new": "background:#1b5587;color:#fff;border-radius:3px;padding:1px 0",
    "open": "background:#fff;color:#55606c;outline:1px dashed #c9d0d8;border-radius:3px;margin:0 2px",
}


def filling_html(filling: Filling, at: int, prompt: str, tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """Self-contained HTML but for Chinese characters, which a view brings; nothing is taken for markup.

    Args:
        at: the pass, from 1.
        tokens: of the prompt.

    Raises:
        ValueError: there is no such pass.
    """
    state = filling.check(at)
    body = unmarked_html(prompt)
    for place, word in enumerate(words_of(state, tokens, tokenizer)):
        if word is None:
            body += f'<span title="open" style="{STYLES["open"]}">{OPEN}</span>'
        elif word:
            kind = "new" if place in state.new else "stands"
            name = f"{language.own(tokenizer.label(state.tokens[place]))}: {state.confidence[place]:.1%}"
            body += boxed_html(word, name, STYLES[kind])
    names = {"stands": "stands", "new": "this pass", "open": f"{OPEN} open"}
    keys = " ".join(
        f'<span style="{STYLES[kind]};padding:1px 6px;margin-right:8px">{html.escape(name)}</span>'
        for kind, name in names.items()
    )
    return framed_html(body + keys_html(keys), "")
