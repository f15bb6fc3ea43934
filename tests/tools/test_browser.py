"""One way to a browser for all that needs one: the first that runs, or the one that is named."""

import pytest

from tools import browser
from tools.browser import find_browser


@pytest.fixture(autouse=True)
def unnamed(monkeypatch):
    monkeypatch.delenv("CHROME", raising=False)


def script(path, line):
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)


def test_a_browser_that_tells_its_version_is_taken(tmp_path):
    path = script(tmp_path / "google-chrome", "echo Chrome 1")
    assert find_browser({"google-chrome": path}.get) == (path, "")


def test_without_a_browser_the_reason_is_said():
    path, reason = find_browser({}.get)
    assert path == "" and "none of chromium, chromium-browser, google-chrome is on the PATH" in reason


def test_a_stub_is_no_browser(tmp_path):
    stub = script(tmp_path / "chromium-browser", "echo 'install the snap' >&2; exit 1")
    path, reason = find_browser({"chromium-browser": stub}.get)
    assert path == "" and f"{stub} cannot tell its version" in reason
    sound = script(tmp_path / "google-chrome", "echo Chrome 1")
    assert find_browser({"chromium-browser": stub, "google-chrome": sound}.get) == (sound, "")


def test_the_browser_may_be_named(tmp_path, monkeypatch):
    named = script(tmp_path / "my browser", "exit 1")  # is not asked for its version
    monkeypatch.setenv("CHROME", named)
    assert find_browser() == (named, "")
    monkeypatch.setenv("CHROME", "no such browser")
    with pytest.raises(ValueError, match="CHROME must be a program, got 'no such browser'"):
        find_browser()


def test_on_windows_nobody_asks_for_a_version(monkeypatch):
    monkeypatch.setattr(browser.os, "name", "nt")
    monkeypatch.setattr(browser.subprocess, "run", None)  # would fail if it were called
    assert find_browser({"msedge": "msedge.exe"}.get) == ("msedge.exe", "")
