"""The outputs that a notebook keeps, compared by nbval with those of another run, by its own rules."""

from pathlib import Path

import nbformat
from nbval.plugin import IPyNbFile, coalesce_streams, get_sanitize_patterns

CONFIG = Path(__file__).resolve().parent.parent / "nbval.cfg"


def differences(notebook: Path, outputs: list[list[dict]], session) -> list[str]:
    """What nbval says against a run, an entry for each code cell that is to be checked and differs.

    Args:
        notebook: with its saved outputs, and `nbval-check-output` where they must come again.
        outputs: of each of its code cells, in order.
        session: pytest's.
    """
    file = IPyNbFile.from_parent(session, path=notebook)
    file.compare_outputs = False  # as --nbval-lax: what is not tagged may differ
    file.sanitize_patterns.update(get_sanitize_patterns(CONFIG.read_text(encoding="utf-8")))
    found = []
    for item, new in zip(file.collect(), outputs, strict=True):
        ran, kept = (
            coalesce_streams([nbformat.from_dict(o) for o in each]) for each in (new, item.cell.outputs)
        )
        if item.options["check"] and not item.compare_outputs(ran, kept):
            found.append(f"{item.name}: " + "\n".join(item.comparison_traceback))
    return found
