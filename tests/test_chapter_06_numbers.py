"""What chapter 6 says in words of what was recorded is what the rows say, after a new recording, too."""

from pathlib import Path

import pytest

from llmcourse.distillation.paired import paired
from llmcourse.distillation.recorded import study_rows
from llmcourse.early_exit.classifier.intervals import student_t
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


def beside_the_response(kind: str) -> dict[tuple[str, str], tuple[float, float]]:
    """Gain in nats of a kind over the response, and its interval of 95 %, of each student and domain."""
    rows = [vars(row) | {"steps": row.tokens} for row in study_rows(recorded.raw_rows("distill_study"))]
    return {
        (one.student, one.domain): (-one.difference.mean, student_t(0.95, 2) * one.difference.error)
        for one in paired(rows, "nats", baseline="response")
        if one.kind == kind and one.num_seeds == 3
    }


def test_what_features_and_own_text_do_beside_the_response():
    assert "for `small` in prose and code beyond the interval; for `draft` nowhere" in TEXT
    both = beside_the_response("both")
    assert [place for place, (gain, reach) in both.items() if abs(gain) > reach] == [
        ("small", "prose"),
        ("small", "code"),
    ]
    assert sum(gain > 0 for (student, _), (gain, _) in both.items() if student == "draft") == 2
    lost = {place for place, (gain, reach) in beside_the_response("on_policy").items() if gain < -reach}
    assert lost == {*(("small", domain) for domain in DOMAINS), ("draft", "poetry")}


def test_a_small_model_on_a_gpu_is_launches():
    rows = [row for row in recorded.raw_rows("pipeline") if row.get("target") == "base"]
    speed = {row["stage"]: row["tokens_per_s"] for row in rows}
    assert speed["KV cache"] < speed["every text anew"]
    assert speed["decode engine"] / speed["every text anew"] == pytest.approx(39.4, abs=1)
    assert speed["continuous batching"] / speed["decode engine"] == pytest.approx(5, abs=0.5)
    assert max(row["ratio_limit"] for row in rows) < 0.06
    slower = ("low-bit weights", "speculation", "low-bit speculation")
    assert all(speed[stage] < speed["decode engine"] for stage in slower)


def test_the_course_joined():
    row = recorded.recorded("pipeline_llama3_8b")[-1]
    assert f"with a distilled draft it is {row['value']:.1f} times" in TEXT
    assert row["int4_alone"] == pytest.approx(2, abs=0.1) and "int4 alone is twice as fast" in TEXT
