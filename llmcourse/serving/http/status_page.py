"""What the server is doing, as plain text that people and Prometheus read (its exposition format 0.0.4)."""

from __future__ import annotations

from llmcourse.serving.http.service import Service


def status_page(service: Service) -> str:
    """One figure a line, each under a line that says what it is."""
    figures = (
        ("requests_running", "gauge", "requests that have a slot and blocks", service.num_running),
        ("requests_waiting", "gauge", "requests in line", service.num_waiting),
        ("blocks", "gauge", "blocks of keys and values in all", service.num_blocks),
        ("blocks_free", "gauge", "blocks that no request uses", service.num_free_blocks),
        ("tokens_total", "counter", "tokens generated since the start", service.token_rate.total),
        ("tokens_per_s", "gauge", "tokens generated a second, lately", round(service.token_rate.per_s(), 1)),
    )
    return "".join(
        f"# HELP llmcourse_{name} {text}\n# TYPE llmcourse_{name} {kind}\nllmcourse_{name} {value}\n"
        for name, kind, text, value in figures
    )
