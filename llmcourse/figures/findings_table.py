"""What was found on a machine, as a table: here or missing, and the remedy."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from llmcourse.figures import language

STATES = {"ok": ("✓", "here"), "note": ("·", "worth knowing"), "missing": ("✗", "missing")}


@runtime_checkable
class Finding(Protocol):
    """A line of `llmcourse doctor`."""

    section: str
    name: str
    value: str
    status: str
    remedy: str


@dataclass(frozen=True)
class FindingsTable:
    """A table that shows itself in a notebook.

    Attributes:
        rows: section, name, what was found, state (a key of `STATES`), remedy.
    """

    rows: tuple[tuple[str, str, str, str, str], ...]
    verdict: str

    def __repr__(self) -> str:
        lines = []
        for section, name, value, state, remedy in self.rows:
            lines.append(f"{STATES[state][0]} {section:9} {name:15} {value}")
            lines += [f"  {'':9} {'':15} → {remedy}"] if remedy else []
        return "\n".join([*lines, self.verdict])

    def _repr_html_(self) -> str:
        left = 'style="text-align:left;vertical-align:top"'
        lines = [f"<tr>{''.join(f'<th {left}>{head}</th>' for head in ('', 'what', 'found', 'remedy'))}</tr>"]
        section = ""
        for row in self.rows:
            if row[0] != section:
                section = row[0]
                lines.append(
                    f'<tr><td colspan="4" {left}><b>{html.escape(section.capitalize())}</b></td></tr>'
                )
            mark, words = STATES[row[3]]
            shown = (*map(html.escape, (f"{mark} {words}", row[1], row[2])), _code(row[4]))
            lines.append(f"<tr>{''.join(f'<td {left}>{cell}</td>' for cell in shown)}</tr>")
        shown = f"<table>{''.join(lines)}</table><p><b>{html.escape(self.verdict)}</b></p>"
        return language.page(shown)


def _code(text: str) -> str:
    """Between backquotes stands what is typed."""
    parts = [html.escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:
        return html.escape(text)
    marked = (f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
    return "".join(marked)


def findings_table(findings: Sequence[Finding], verdict: str, short: Sequence[str] = ()) -> FindingsTable:
    """The table of what was found.

    Args:
        findings: in the order to show, those of a section one after another.
        verdict: the sentence below.
        short: sections of which only what is not as it should be is named, the rest in one line.

    Raises:
        ValueError: a finding is in a state that there is none of.
    """
    for finding in findings:
        if finding.status not in STATES:
            raise ValueError(
                f"status must be one of {', '.join(STATES)}, got {finding.status!r} for {finding.name}; "
                "mend the finding"
            )
    rows, told = [], set()
    for finding in findings:
        if finding.section in short and finding.status == "ok":
            if finding.section not in told:
                told.add(finding.section)
                same = [f for f in findings if f.section == finding.section and f.status == "ok"]
                rows.append((finding.section, f"{len(same)} of them", _listed(same), "ok", ""))
            continue
        rows.append((finding.section, finding.name, finding.value, finding.status, finding.remedy))
    return FindingsTable(tuple(rows), verdict)


def _listed(findings: Sequence[Finding]) -> str:
    return ", ".join(finding.name for finding in findings)
