"""A page a student: points, and of each exercise whether it passed and why not.

What strangers wrote is cleaned and escaped, and a content security policy lets the page load and run
nothing: its one style sheet is allowed by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from html import escape

from llmcourse.grading.printable import clean
from llmcourse.grading.records.adjustments import Mark, Row
from llmcourse.grading.results import Finding

STYLE = """
:root { color-scheme: light dark; --line: #8886; --good: #1a7f37; --bad: #b42318; --wait: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff8a80; --wait: #e3b341; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
article { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem 1rem; margin: 1rem 0; }
article h3 { display: grid; grid-template-columns: 1fr max-content max-content; gap: 1rem;
  margin: .25rem 0; }
p, li { overflow-wrap: anywhere; }
p.reason, dd.value { font-family: ui-monospace, monospace; font-size: .9rem; overflow: hidden; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: .5rem 0; }
dt { grid-column: 1; opacity: .8; }
dd { grid-column: 2; margin: 0; overflow-wrap: anywhere; }
dd.value { white-space: pre-wrap; } dd.value + dd.value { margin-top: -.25rem; }
.total { font-size: 1.5rem; font-weight: 600; }
.pass { color: var(--good); } .fail, .rejected { color: var(--bad); } .wait { color: var(--wait); }
.small { font-size: .85rem; opacity: .8; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: start; }
td { white-space: nowrap; }
td.long { white-space: normal; min-width: 12rem; max-width: 24rem; overflow-wrap: anywhere; }
th.tall { writing-mode: vertical-rl; transform: rotate(180deg); font-weight: normal; }
tbody tr:has(+ tr) td { border-bottom: none; }
td.notes { white-space: normal; overflow-wrap: anywhere; padding-top: 0; font-size: .85rem; }
td.notes ul { margin: 0; padding-inline-start: 1.2rem; position: sticky; left: 0;
  max-width: calc(min(100vw, 72rem) - 5rem); }
td.number, th.number { text-align: end; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; fill: currentColor; }
@media (max-width: 40rem) {
  body { padding: .5rem; } article h3 { gap: .5rem; font-size: 1rem; }
  th, td { padding: .25rem; } td.long { min-width: 5rem; }
  th.tall, td.sign { padding: .25rem 0; line-height: 1.2; text-align: center; }
}
@media print {
  body { max-width: none; padding: 0; } article { break-inside: avoid; } .wide { overflow: visible; }
}
"""
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)
WORDS = {
    "pass": "passed",
    "near": "passed in part",
    "fail": "not passed",
    "not run": "not graded yet",
    "error": "to be graded again",
}
TIERS = {
    "none": "graded without isolation",
    "landlock": "graded in isolation (landlock, seccomp)",
    "namespace": "graded in isolation (landlock, seccomp, namespaces)",
}
# Names that are the same file, or none, on some system: other case, device names, dots at an end.
PLAIN_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,78}[a-z0-9])?")
DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
MAX_NAME_BYTES = 120


def text(value: str) -> str:
    """Text of a stranger as HTML, whose direction of writing ends with it."""
    return f"<bdi>{escape(clean(value))}</bdi>"


def page(title: str, body: str) -> str:
    """A whole HTML page that can load and run nothing.

    Args:
        body: HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(clean(title))}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def file_name(student: str) -> str:
    """Where a student's page lies: never two students in one file, whatever the disk takes for equal.

    Lower-case ASCII names stay as they are. Others get a `~` and a digest of the name, since a disk may
    ignore case, or how accents are composed; letters of any language stay in front of it.
    """
    if PLAIN_NAME.fullmatch(student) and student.split(".")[0] not in DEVICES:
        return f"{student}.html"
    digest = hashlib.sha256(student.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    composed = unicodedata.normalize("NFC", student)
    shown = "".join(c if unicodedata.category(c)[0] in "LMN" or c in "-_." else "_" for c in composed)
    shown = shown.encode("utf-8", "ignore")[:MAX_NAME_BYTES].decode("utf-8", "ignore").strip(".")
    if shown.split(".")[0].lower() in DEVICES:
        shown = f"_{shown}"
    return f"{shown}~{digest}.html"


def student_page(rows: Sequence[Row], inputs: bool = True) -> str:
    """One student's page, with a section a lab.

    Args:
        rows: of this student, at least one.
        inputs: whether to show what answers failed with, and what came out and should have.
    """
    student = rows[0].result.student
    body = [f"<h1>{text(student)}</h1>", *(_lab(row, inputs) for row in rows)]
    return page(f"Feedback for {student}", "\n".join(body))


def points_of(row: Row) -> str:
    """`7 of 10 points`, or why there are none, in plain words."""
    if row.points is None:
        words = {"rejected": "could not be graded", "error": "to be graded again"}
        return words.get(row.result.status, row.result.status)
    waiting = sum(mark.question.max_points for mark in row.waiting)
    later = f", {waiting:g} not graded yet" if waiting else ""
    return f"{row.points:g} of {row.max_points:g} points{later}"


def _lab(row: Row, inputs: bool) -> str:
    result = row.result
    parts = [f"<section>\n<h2>Lab {text(result.lab)}</h2>", f'<p class="total">{points_of(row)}</p>']
    if result.status == "rejected":
        parts.append(f'<p class="reason rejected">{text(result.reason)}</p>')
    if result.status == "error":
        trouble = f"The grader failed, which is not judged as an answer. {text(result.reason)}"
        parts.append(f'<p class="wait">{trouble}</p>')
    parts += [_list("Noted about the notebook", result.flags), _adjustments(row, None)]
    parts += [_exercise(row, mark, inputs) for mark in row.marks if result.questions or mark.adjusted]
    if any(question.outcome in ("fail", "near") for question in result.questions):
        more = "more hints" if inputs else "inputs, values and hints"
        parts.append(f'<p class="small">check(…) in the notebook asks the same of other inputs: {more}.</p>')
    about = f"{TIERS.get(result.tier, result.tier)} at {row.graded_at}; file {result.sha256[:12]}"
    parts.append(f'<p class="small">{text(about)}</p>\n</section>')
    return "\n".join(part for part in parts if part)


def _exercise(row: Row, mark: Mark, inputs: bool) -> str:
    question = mark.question
    kind = question.outcome if question.outcome in ("pass", "fail") else "wait"
    points = f"{'–' if mark in row.waiting else f'{mark.points:g}'} of {question.max_points:g}"
    if mark.adjusted:
        points += f" (was {question.points:g})"
    parts = [
        f"<article>\n<h3><span>{text(question.exercise)}</span> "
        f'<span class="{kind}">{WORDS[question.outcome]}</span> <span>{points}</span></h3>',
        f'<p class="reason">{text(question.reason)}</p>' if question.reason else "",
        _finding(question.finding, inputs),
        _list("Noted", question.flags),
        _adjustments(row, question.exercise),
        "</article>",
    ]
    return "\n".join(part for part in parts if part)


def _finding(finding: Finding, inputs: bool) -> str:
    """What an answer failed with, and what may help."""
    values = {
        "called with": finding.given,
        "got": finding.got.split("\n"),
        "expected": finding.expected.split("\n"),
    }
    advice = {"slip": (finding.slip,), "hint": (finding.hint,)}
    lines = []
    for name, texts in {**(values if inputs else {}), **advice}.items():
        kind = ' class="value"' if name in values else ""
        shown = [f"<dd{kind}>{text(line)}</dd>" for line in texts if line]
        lines += [f"<dt>{name}</dt>", *shown] if shown else []
    return "<dl>\n" + "\n".join(lines) + "\n</dl>" if lines else ""


def _adjustments(row: Row, exercise: str | None) -> str:
    """The corrections of an exercise or, for `None`, of the total."""
    of_it = (a for a in row.adjustments if a.exercise == exercise)
    return _list("Corrected by hand", [f"{a} ({a.made_at[:10]}): {a.reason}" for a in of_it])


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "\n".join(f"<li>{text(line)}</li>" for line in lines)
    return f"<p>{title}:</p>\n<ul>\n{items}\n</ul>"
