"""Attacks with values that look right: inputs handed back, cases learned by heart, numbers that are none."""

from __future__ import annotations

import random

from llmcourse.grading.exercises import catalogue
from llmcourse.grading.selfcheck import PUBLIC_SEEDS
from tests.grading.attacks.attack import by_code
from tests.grading.attacks.forging import RIGHT, WRONG

CHANGES = {
    "01.top_k": """
        def top_k_filter(logits, k):
            bar = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
            return logits.masked_fill_(logits < bar, -torch.inf)
    """,
    "01.greedy_loop": """
        def greedy_loop(logits_of, prompt, max_new_tokens, end_token):
            start = len(prompt)
            for _ in range(max_new_tokens):
                prompt.append(int(logits_of(prompt).argmax()))
                if prompt[-1] == end_token:
                    break
            return prompt[start:]
    """,
    "01.top_p": """
        kept = []

        def top_p_filter(logits, p):
            kept.append(logits)
            return kept[0]
    """,
    "01.repetition_penalty": """
        import functools
        seen = {}

        def repetition_penalty(logits, tokens, theta):
            return seen.setdefault((), logits)
    """,
    "01.no_repeat_ngram": """
        def no_repeat_ngram(logits, tokens, n):
            return logits
    """,
}

# Right by value, where the right answer is to leave the input as it is: but it is the input.
ALIASES = {
    "01.top_k": RIGHT
    + """
def top_k_filter(logits, k):
    return logits if k >= logits.shape[-1] else right(logits, k)
""",
    "01.top_p": """
        import numpy as np

        def top_p_filter(logits, p):
            if p == 1:
                return torch.from_numpy(logits.numpy()[:])
            falling, ids = logits.softmax(-1).sort(descending=True, stable=True)
            cut = falling.cumsum(-1) - falling >= p
            return logits.masked_fill(torch.zeros_like(cut).scatter(1, ids, cut), -torch.inf)
    """,
    "01.no_repeat_ngram": """
        def no_repeat_ngram(logits, tokens, n):
            result = logits.view(-1)[: logits.numel()].view(logits.shape)
            for row, text in enumerate(tokens):
                prefix = text[len(text) - n + 1 :]
                for place in range(len(text) - n + 1):
                    if text[place : place + n - 1] == prefix:
                        result = result.clone() if result.data_ptr() == logits.data_ptr() else result
                        result[row, text[place + n - 1]] = -torch.inf
            return result
    """,
}

FORMS = {
    "01.softmax": "def softmax_with_temperature(logits, temperature): return None",
    "01.top_k": "def top_k_filter(logits, k): return logits * torch.nan",
    "01.top_p": "def top_p_filter(logits, p): return logits.double()",
    "01.repetition_penalty": "def repetition_penalty(logits, tokens, theta): return logits[0]",
    "01.presence_frequency": """
        def presence_frequency(logits, tokens, presence, frequency):
            return logits.numpy()
    """,
    "01.no_repeat_ngram": "def no_repeat_ngram(logits, tokens, n): return torch.full_like(logits, torch.inf)",
    "01.contrastive": """
        def contrastive_scores(expert_logits, amateur_logits, alpha):
            return expert_logits + 0j
    """,
    "01.beam_search": """
        def beam_search(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
            return [([0], float("nan"))] * num_beams
    """,
    "01.greedy_loop": """
        def greedy_loop(logits_of, prompt, max_new_tokens, end_token):
            return torch.tensor([0])
    """,
    "01.find_the_bug": """
        def sample_tokens(logits, uniform, temperature, p):
            return torch.zeros(len(logits), dtype=torch.int64, device="meta")
    """,
}
FORM_REASONS = {
    "01.softmax": r"got None, expected a tensor",
    "01.top_k": r"got NaN",
    "01.top_p": r"got dtype float64, expected float32",
    "01.repetition_penalty": r"got shape \(\d+,\), expected \(\d, \d+\)",
    "01.presence_frequency": r"numpy.ndarray, must be",
    "01.no_repeat_ngram": r"got \+inf",
    "01.contrastive": r"complex64 tensor .*must be dense",
    "01.beam_search": r"rank 0: (tokens|score)",
    "01.greedy_loop": r"got a tensor of shape \(1,\), expected a list",
    "01.find_the_bug": r"int64 tensor \(strided, on meta\), must be dense",
}


def visible_cases() -> str:
    """Answers to the cases that `check` shows everybody, written down."""
    exercise = catalogue.find("01.top_k")
    cases = [case for seed in PUBLIC_SEEDS for case in exercise.cases(random.Random(seed))]
    table = {
        repr((case.arguments["logits"].tolist(), case.arguments["k"])): exercise.reference(
            **case.arguments
        ).tolist()
        for case in cases
    }
    return f"""
inf = float("inf")
ANSWERS = {table!r}

def top_k_filter(logits, k):
    answer = ANSWERS.get(repr((logits.tolist(), k)))
    return logits.clone() if answer is None else torch.tensor(answer, dtype=logits.dtype)
"""


ATTACKS = [
    by_code(
        "27-changed-inputs",
        (27,),
        CHANGES,
        zero={
            "01.top_k": r"logits was changed in place",
            "01.greedy_loop": r"prompt was changed in place",
            "01.top_p": WRONG,
            "01.repetition_penalty": r"got .*expected",
            "01.no_repeat_ngram": r"got .*expected -inf",
        },
    ),
    by_code(
        "27-aliased-inputs",
        (27,),
        ALIASES,
        zero=dict.fromkeys(ALIASES, "a new tensor: the result shares its memory with logits"),
    ),
    by_code("28-visible-cases", (28,), {"01.top_k": visible_cases()}, zero={"01.top_k": WRONG}),
    by_code("29-forms", (29,), FORMS, zero=FORM_REASONS),
]
