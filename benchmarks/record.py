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
        "value": rounded(value),
        "unit": unit,
        "limit": rounded(limit),
        "limit_name": limit_name,
        "ratio_limit": rounded(limit and value / limit),
        "peer": peer,
        "peer_value": rounded(peer_value),
        "ratio_peer": rounded(peer_value and value / peer_value),
        "spread": rounded(spread),
        "device": fingerprint.pop("device"),
        "versions": fingerprint,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        **more,
    }
    _append(RESULTS / f"{words(row['device'], '-')}.jsonl", row)
    print(json.dumps(row, indent=1))
    return row


def record_raw(stem: str, device: torch.device, /, **row: Any) -> None:
    """Appends what a figure was made of to `raw/<stem>_<device>.jsonl`, with the device and the date."""
    name = hardware.this_machine(device).name
    whole = row | {"device": name, "date": datetime.date.today().isoformat()}
    _append(RESULTS / "raw" / f"{stem}_{words(name, '_')}.jsonl", whole)


def _append(path: Path, row: dict[str, Any]) -> None:
    """Closed after each line, so that a program that is stopped keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def words(name: str, between: str) -> str:
    return re.sub(r"[^a-z0-9]+", between, name.lower()).strip(between)


def rounded(number: float | None) -> float | None:
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
