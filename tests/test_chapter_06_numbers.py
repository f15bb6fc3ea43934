"""What chapter 6 says in words of what was recorded is what the rows say, after a new recording, too."""

from pathlib import Path

import pytest

from llmcourse.figures import recorded

SOURCE = Path(__file__).parent.parent / "notebooks" / "source" / "06_distillation.py"
TEXT = SOURCE.read_text(encoding="utf-8").replace("\n# ", " ")
DOMAINS = ("prose", "poetry", "code")


def acceptance(teacher: str) -> list[float]:
    """What each domain gained."""
    found = {
        (row["domain"], row["stage"]): row["acceptance"]
        for row in recorded.raw_rows("distill_draft")
        if row["teacher"] == teacher and row.get("acceptance") is not None
    }
    return [found[domain, "after"] - found[domain, "before"] for domain in DOMAINS]


def kl(way: str) -> list[float]:
    """What 3 bits cost in each domain, rounded in some way."""
    found = {row["domain"]: row["kl"] for row in recorded.raw_rows("distill_quantized") if row["way"] == way}
    return [found[domain] for domain in DOMAINS]


def span(numbers: list[float], form: str) -> str:
    return f"{min(numbers):{form}} to {max(numbers):{form}}"


def won_back(way: str) -> str:
    shares = [100 * (1 - ours / rounded) for ours, rounded in zip(kl(way), kl("round"), strict=True)]
    return span(shares, ".0f") + " %"


def test_acceptance_by_the_small_target_and_by_the_large_one():
    assert f"raise the acceptance by `base` by {span(acceptance('base'), '.2f')}:" in TEXT
    assert f"bring {span(acceptance('target'), '.2f')}. So a draft" in TEXT


def test_what_three_bits_win_back():
    assert f"it wins back {won_back('distilled')} of what plain rounding cost" in TEXT
    assert f"The text alone (`text`) wins back {won_back('text')}:" in TEXT
    ahead = [1 - ours / theirs for ours, theirs in zip(kl("distilled"), kl("gptq"), strict=True)]
    assert ahead[0] > 1 / 5 and all(0 < share < 1 / 100 for share in ahead[1:])


def test_the_course_joined():
    row = recorded.recorded("pipeline_llama3_8b")[-1]
    assert f"with a distilled draft it is {row['value']:.1f} times" in TEXT
    assert row["int4_alone"] == pytest.approx(2, abs=0.1) and "int4 alone is twice as fast" in TEXT
