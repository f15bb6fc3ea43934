"""Ctrl-C ends `python -m llmcourse` cleanly: before a command runs, while it imports, and after it."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest

# Says when the first module of the course is imported; interrupts itself before some module, or at the end.
PROGRAM = """
import atexit, os, runpy, signal, sys

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "llmcourse.cli":
            os.write(1, b"begins")
        if name == {module!r}:
            interrupt()

handler = signal.SIG_IGN if {ignored} else signal.default_int_handler
signal.signal(signal.SIGINT, handler)  # whatever the shell of this test has
sys.meta_path.insert(0, Finder())
if {at_the_end}:
    atexit.register(interrupt)
sys.argv[1:] = {arguments!r}
runpy.run_module("llmcourse", run_name="__main__", alter_sys=True)
"""
GENERATE = ["generate", "Once", "--model", "small", "--max-new-tokens", "400"]


def started(arguments, module="", at_the_end=False, ignored=False):
    settings = {"module": module, "at_the_end": at_the_end, "ignored": ignored, "arguments": arguments}
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", PROGRAM.format(**settings)], **pipes)


def ending(process):
    """Its exit code and errors, without what it printed."""
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, errors


@pytest.mark.parametrize(
    "module",
    [
        "llmcourse.cli",
        "argparse",
        "llmcourse.grading.commands",
        "llmcourse.decoding.params",
        "torch",
        "torch._C",
        "numpy",
        "numpy.exceptions",  # imported by C code
        "torch.nn",
        "llmcourse.pretrained",
        "llmcourse.decoding.loop",
    ],
)
def test_an_import_is_interrupted(module):
    assert ending(started(GENERATE, module)) == (130, b"\n")


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_ctrl_c_comes_after_some_time(delay_s):
    process = started(GENERATE)
    assert select.select([process.stdout], [], [], 60)[0] and os.read(process.stdout.fileno(), 6) == b"begins"
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    assert ending(process) == (130, b"\n")


def test_the_end_is_interrupted():
    assert ending(started(["--help"], at_the_end=True)) == (130, b"\n")


def test_what_is_to_be_ignored_stays_so():
    assert ending(started(["--help"], "argparse", at_the_end=True, ignored=True)) == (0, b"")
