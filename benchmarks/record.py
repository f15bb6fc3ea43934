"""One line for each figure in benchmarks/results/<device>.jsonl, the same fields for all of them."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from llmcourse import hardware

RESULTS = Path(__file__).parent / "results"


def record(
    name: str,
    value: float,
    unit: str,
    *,
    limit: float | None = None,
    limit_name: str | None = None,
    peer: str | None = None,
    peer_value: float | None = None,
    spread: float | None = None,
    device: torch.device | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Appends a figure, prints it, and returns it.

    Args:
        value: higher is better; where there is no better, as for bytes, the closer to `limit`.
        limit, peer_value: in the unit of `value`, measured in the same process, or predicted.
        spread: as `timing.Timing.spread`.
        device: that was measured; the best one of this machine if None.
        more: whatever else a reader of the figure should know.
    """
    fingerprint = hardware.fingerprint(hardware.default_device() if device is None else device)
    row = {
        "name": name,
        "value": _rounded(value),
        "unit": unit,
        "limit": _rounded(limit),
        "limit_name": limit_name,
        "ratio_limit": _rounded(limit and value / limit),
        "peer": peer,
        "peer_value": _rounded(peer_value),
        "ratio_peer": _rounded(peer_value and value / peer_value),
        "spread": _rounded(spread),
        "device": fingerprint.pop("device"),
        "versions": fingerprint,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        **more,
    }
    path = RESULTS / (re.sub(r"[^a-z0-9]+", "-", row["device"].lower()).strip("-") + ".jsonl")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))
    return row


def _rounded(number: float | None) -> float | None:
    """Four significant digits: more would claim a precision that no timing has."""
    return None if number is None else float(f"{number:.4g}")


def commit() -> str | None:
    """The checkout's commit; None where there is none."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


if __name__ == "__main__":
    raise SystemExit("run one of the benchmarks beside this file")
