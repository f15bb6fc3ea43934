"""What must hold after a folder of attacks was graded; a subclass says as whom and behind which walls."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from typing import ClassVar

import pytest

from llmcourse.grading.exercises import catalogue as exercises
from llmcourse.grading.sandbox.policy import Tier
from tests.grading.attacks.attack import LAB, Attack
from tests.grading.attacks.catalogue import ATTACKS, BY_NAME
from tests.grading.attacks.grading import (
    ORDINARY_UID,
    TOKEN,
    Batch,
    graded,
    half,
    honest_book,
    tier_of,
    wrong_in,
)
from tests.grading.records.test_feedback import SETTINGS, TAGS, Reader

POINTS = {exercise.name: exercise.points for exercise in exercises.labs()[LAB]}
TOTAL = sum(POINTS.values())
RIGHT_HALF = half(POINTS)
CONTROLS = {"00-reference": honest_book, "00-half": lambda: wrong_in(set(POINTS) - RIGHT_HALF)}
MOST_MEMORY = 1536 << 20  # of any process, whatever a submission does
# What a spreadsheet computes, at the start of a cell.
FORMULA = re.compile(r"\s*[=+@\t\r-]")
NUMBER = re.compile(r"-?\d+(\.\d+)?")


def grading_user(tier: Tier, ordinary: bool) -> int | None:
    """Whom to become to grade behind these walls, None for nobody else; skips where that cannot be."""
    root = os.geteuid() == 0
    if not ordinary and not root:
        pytest.skip("grading as root is tested where the tests run as root")
    uid = ORDINARY_UID if ordinary and root else None
    best, why = tier_of(uid)
    if best < tier:
        pytest.skip(f"no tier {tier.name.lower()} here{' for an ordinary user' * ordinary}: {why}")
    return uid


class Suite:
    """The attacks, graded once for all tests of a class."""

    tier: ClassVar[Tier]
    ordinary: ClassVar[bool]

    @pytest.fixture(scope="class")
    @classmethod
    def batch(cls) -> Batch:
        uid = grading_user(cls.tier, cls.ordinary)
        extra = {student: make() for student, make in CONTROLS.items()}
        return graded(ATTACKS, extra, cls.tier.name.lower(), uid)

    @pytest.mark.parametrize("name", [attack.name for attack in ATTACKS])
    def test_attack(self, batch, name):
        attack = BY_NAME[name]
        result = batch.of(attack)
        shown = json.dumps(result, indent=1)
        assert "BREACH" not in shown, shown
        assert result["status"] == attack.status, shown
        assert result["tier"] == self.tier.name.lower()
        if attack.status == "rejected":
            assert result["points"] is None and not result["questions"]
            assert re.search(attack.reason, result["reason"]), result["reason"]
        else:
            self.questions(attack, result)
        flags = [*result["flags"], *(flag for q in result["questions"] for flag in q["flags"])]
        for pattern in attack.flags:
            assert any(re.search(pattern, flag) for flag in flags), flags
        assert result["seconds"] < attack.within_s

    def questions(self, attack: Attack, result: dict) -> None:
        """Those that were attacked have no points and say why; the others are not affected."""
        assert [q["exercise"] for q in result["questions"]] == list(POINTS)
        for question in result["questions"]:
            exercise, reason = question["exercise"], question["reason"]
            if exercise in attack.zero:
                assert (question["status"], question["points"]) == ("fail", 0), question
                assert re.search(attack.zero[exercise], reason), question
                assert len(reason) < 500 and reason.isprintable(), question
            elif attack.rest == "pass" or exercise in attack.passes:
                assert (question["status"], question["points"]) == ("pass", POINTS[exercise]), question
            else:
                assert question["points"] == 0, question

    def test_the_reference_has_all_points(self, batch):
        assert batch.results["00-reference"]["points"] == TOTAL

    def test_half_an_answer_has_half_the_points(self, batch):
        result = batch.results["00-half"]
        assert result["points"] == TOTAL / 2
        assert {q["exercise"] for q in result["questions"] if q["status"] == "pass"} == RIGHT_HALF

    def test_everybody_is_in_the_gradebook_once(self, batch):
        assert len(batch.results) == len(ATTACKS) + len(CONTROLS)
        assert len({id(batch.of(attack)) for attack in ATTACKS}) == len(ATTACKS)

    def test_the_batch_goes_on_to_its_end(self, batch):
        assert (batch.code, batch.stderr) == (1, "")
        assert batch.summary["left"] == 0 and batch.summary["failed"] == {}
        rejected = {batch.of(attack)["student"] for attack in ATTACKS if attack.status == "rejected"}
        assert set(batch.summary["rejected"]) == rejected

    def test_again_nothing_changes(self, batch):
        """44: what was graded is not graded again, and counts once."""
        rejected = len([attack for attack in ATTACKS if attack.status == "rejected"])
        assert batch.again_summary["skipped"] + batch.again_summary["graded"] == len(batch.results)
        assert batch.again_summary["graded"] <= rejected  # what cannot be read is looked at again
        assert batch.again_summary["changed"] == []

        def lasting(results: dict) -> dict:
            gone = ("graded_at", "seconds")
            return {s: {k: v for k, v in r.items() if k not in gone} for s, r in results.items()}

        assert lasting(batch.again) == lasting(batch.results)

    def test_no_process_is_left(self, batch):
        assert batch.running == []
        assert batch.watch.most >= 3  # it was looked for: grader, fork server, worker

    def test_nothing_is_left_behind_or_written_outside(self, batch):
        assert batch.left == []

    def test_no_process_takes_much_memory(self, batch):
        assert 64 << 20 < batch.watch.largest < MOST_MEMORY

    def test_no_secret_gets_out(self, batch):
        assert [name for name, text in batch.outputs.items() if TOKEN in text] == []

    def test_pages_show_text_and_run_nothing(self, batch):
        pages = {name: text for name, text in batch.outputs.items() if name.endswith(".html")}
        assert len(pages) == len(batch.results) + 1
        for name, text in pages.items():
            reader = Reader(text)
            assert set(reader.tags) <= set(TAGS), name
            assert {attribute for attribute, _ in reader.attributes} <= set(SETTINGS), name
            assert "default-src 'none'" in text, name
            links = [value for attribute, value in reader.attributes if attribute == "href"]
            assert all(re.fullmatch(r"feedback/[\w%~.-]+\.html", link) for link in links), name

    def test_tables_hold_no_formula(self, batch):
        table = list(csv.reader(io.StringIO(batch.outputs["grades.csv"].removeprefix("\ufeff"), newline="")))
        assert len(table) == len(batch.results) + 1
        # Where a comma is the decimal sign, the cells of a table end with a semicolon.
        cells = [part for row in table for cell in row for part in cell.split(";")]
        computed = [cell for cell in cells if FORMULA.match(cell) and not cell.startswith("'")]
        assert [cell for cell in computed if not NUMBER.fullmatch(cell)] == []
        assert "'=1+1" in "".join(cells)  # there was something to neutralise

    def test_nothing_acts_on_a_terminal_or_turns_text_round(self, batch):
        texts = {n: t for n, t in batch.outputs.items() if n.endswith((".html", ".json", ".csv"))}
        texts |= {"stderr": batch.stderr, "stdout": json.dumps(batch.summary, ensure_ascii=False)}
        for name, text in texts.items():
            odd = {
                c
                for c in text.removeprefix("\ufeff")
                if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
            }
            assert odd <= set("\r\n"), (name, odd)
