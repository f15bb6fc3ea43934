"""What the README tells people to type is there to be typed, and what it shows and says is so."""

import importlib.util
import io
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest
from PIL import Image

from llmcourse.cli import build_parser
from tools import readme, screenshots

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
GENERATED = README.split(readme.BEGIN)[1].split(readme.END)[0]
TYPED = README.replace(GENERATED, "")
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]


def of(program):
    return [command.removeprefix(program) for command in COMMANDS if command.startswith(program)]


def section(title):
    """The commands of a section's first block."""
    return re.search(rf"^## {title}\n+```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)[1].splitlines()


@pytest.mark.parametrize("title", ["Labs, for students", "Grading, for instructors"])
def test_three_commands_each(title):
    assert len(section(title)) == 3


@pytest.mark.parametrize("arguments", of("python -m llmcourse "))
def test_commands_are_understood(arguments):
    assert callable(build_parser().parse_args(shlex.split(arguments)).run)


@pytest.mark.parametrize("arguments", of("make "))
def test_targets_and_their_settings_are_there(arguments):
    target, *settings = arguments.split()
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
    for setting in settings:
        name = setting.split("=")[0]
        assert re.search(rf"\b{name}\b", MAKEFILE), f"{name} means nothing to make {target}"


def test_labs_that_are_named_are_there():
    named = set(re.findall(r"\b\d\d_\w+", "\n".join(COMMANDS)))
    assert named and {(ROOT / "labs" / f"{name}.ipynb").is_file() for name in named} == {True}


# The table of what the GPU reaches


def test_the_table_is_what_was_recorded():
    assert readme.renewed(README, readme.table()) == README, "python -m tools.readme writes it anew"


def row(name, value=2.0, **more):
    fields = {
        "unit": "tok/s",
        "limit_name": "copy bandwidth over the bytes",
        "ratio_limit": 0.5,
        "date": "2026-11-30",
    }
    fields |= {"peer": "peer", "ratio_peer": 0.9, "device": "D", "versions": {}}
    return {"name": name, "value": value, **fields, **more}


def test_a_line_shows_the_least_and_the_most_losses_too():
    rows = [row("a", 1234.5, ratio_peer=1.2), row("b", 99.94, ratio_limit=0.6, target="8 B")]
    assert readme.line("both", rows) == (
        "both (8 B)", "99.9 to 1,234 tok/s", "50 to 60 % of copy bandwidth", "0.90 to 1.20", "peer",
    )  # fmt: skip
    assert readme.line("one", [row("a", unit="speed-up", ratio_limit=None, limit_name=None)]) == (
        "one", "", "–", "0.90", "peer",
    )  # fmt: skip


@pytest.mark.parametrize("more", [{"unit": "GB/s"}, {"peer": "other"}, {"limit_name": "other"}])
def test_lines_of_different_things_are_refused(more):
    with pytest.raises(
        ValueError, match=rf"'both' must have one {next(iter(more))}, got .*make several lines"
    ):
        readme.line("both", [row("a"), row("b", **more)])


def test_a_line_without_a_peer_says_so_and_is_not_mixed_with_one_that_has_it():
    alone = row("a", peer=None, ratio_peer=None)
    assert readme.line("alone", [alone])[-2:] == ("–", "–")
    with pytest.raises(ValueError, match="must have one peer, got None, "):
        readme.line("both", [alone, row("b")])


def test_only_the_named_device_counts_and_no_pattern_is_lost():
    results = {"a_1": {"D": row("a_1"), "E": row("a_1", 3.0)}, "a_2": {"E": row("a_2")}}
    assert [one["value"] for one in readme.chosen(["a_*"], "D", results)] == [2.0]
    with pytest.raises(ValueError, match=r"must fit a benchmark recorded on D, got 'a_2'"):
        readme.chosen(["a_*", "a_2"], "D", results)


def test_no_line_is_of_benchmarks_of_another():
    """But for one layer beside two peers, whose rows have names of their own."""
    names = [one["name"] for _, patterns in readme.LINES for one in readme.chosen(patterns)]
    assert len(names) == len(set(names)) > 60


def test_a_readme_without_its_marks_is_refused():
    for text in ("nothing", readme.END + readme.BEGIN, 2 * readme.BEGIN + readme.END):
        with pytest.raises(ValueError, match="once each; put them back"):
            readme.renewed(text, "")


FIGURE = re.compile(r"\d\s*(?:tok/s|[GT]B/s|TFLOP/s|TOP/s|layers/s|×|times as fast)")


def test_no_figure_is_typed_by_hand():
    assert FIGURE.findall(TYPED) == [] and len(FIGURE.findall(GENERATED)) > 10
    assert FIGURE.search("it makes 266 tok/s") and FIGURE.search("2.6× faster")


# Pictures and links

PICTURES = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)


def test_pictures_are_those_that_a_tool_takes():
    shown = {Path(path) for _, path in PICTURES}
    assert shown == {path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.png")}
    assert {path.stem for path in shown} == {*screenshots.VIEWS, *screenshots.PLOTS}
    assert all(len(words.split()) > 8 for words, _ in PICTURES)  # for whoever does not see them


@pytest.mark.parametrize("path", [path for _, path in PICTURES])
def test_pictures_are_small_and_not_empty(path):
    data = (ROOT / path).read_bytes()
    found = Image.open(io.BytesIO(data))
    assert 8_000 < len(data) <= screenshots.MOST_BYTES
    assert found.width >= 800 and found.height >= 300 and len(found.convert("RGB").getcolors(1 << 24)) > 8


@pytest.mark.parametrize("name", screenshots.PLOTS)
def test_plots_show_what_is_recorded(name):
    """By their words, which are kept in the file."""
    now = Image.open(io.BytesIO(screenshots.drawn(name)))
    saved = Image.open(ROOT / "docs" / f"{name}.png")
    assert saved.text["Description"] == now.text["Description"], "python -m tools.screenshots draws it anew"
    assert now.size == saved.size and len(re.findall(r"\d+", now.text["Description"])) > 20


@pytest.mark.parametrize("name", screenshots.VIEWS)
def test_cells_of_the_views_show_what_exists(name):
    """They are run in a browser only: here their imports are, and the views' arguments are looked up."""
    import inspect

    from llmcourse.figures import widgets

    source = compile(screenshots.VIEWS[name].strip(), name, "exec")
    view = getattr(widgets, "".join(part.capitalize() for part in name.split("_")))
    named = re.findall(r"\b(\w+)=", re.search(rf"{view.__name__}\((.*)\)", screenshots.VIEWS[name])[1])
    own = [word for word in named if word not in ("temperature", "top_p")]
    assert set(own) <= set(inspect.signature(view).parameters) and view.__name__ in source.co_names


def test_a_packed_picture_has_few_colours_and_a_narrow_margin():
    wide = Image.new("RGB", (300, 200), "white")
    wide.paste((200, 10, 10), (100, 50, 140, 90))
    out = io.BytesIO()
    wide.save(out, "PNG")
    found = Image.open(io.BytesIO(screenshots.packed(out.getvalue()))).convert("RGB")
    assert found.size == (40 + 2 * screenshots.MARGIN, 40 + 2 * screenshots.MARGIN)
    assert {colour for _, colour in found.getcolors()} == {(255, 255, 255), (200, 10, 10)}


def test_links_lead_somewhere():
    links = {link.split("#")[0] for link in re.findall(r"(?<!!)\]\(([^)]+)\)", README)}
    assert [link for link in sorted(links) if link and not (ROOT / link).exists()] == []


# Symptoms

TROUBLES = re.search(r"^\| what you see .*?(?=\n\n)", README, re.DOTALL | re.MULTILINE)[0].splitlines()[2:]
SYMPTOMS, REASONS, REMEDIES = zip(*(line.strip("| ").split("|") for line in TROUBLES), strict=True)
OF_OTHERS = {  # what programs outside the environment say, or what is not a message
    "make: command not found": "the shell",
    "CUDA out of memory": "PyTorch's own C++",
    "NameError: name 'widgets' is not defined": "Python",
    "git status": "a command",
}


def places() -> list[Path]:
    """Where messages come from: the course, PyTorch's check of a GPU, JupyterLab and its widgets."""
    (torch,) = importlib.util.find_spec("torch").submodule_search_locations
    lab = Path(sys.prefix) / "share" / "jupyter"
    pages = [
        *(lab / "lab" / "static").glob("jlab_core*.js"),
        *(lab / "labextensions" / "@jupyter-widgets").rglob("*.js"),
    ]
    ours = [ROOT / "Makefile", *(ROOT / "llmcourse").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    return [*ours, Path(torch) / "cuda" / "__init__.py", *pages]


@pytest.fixture(scope="module")
def said() -> str:
    """All of it, as one line, without the seams of strings that go over several."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in places()]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))


def parts(symptom: str) -> list[str]:
    """What a message always says, without numbers and names that differ from time to time."""
    return [part.strip() for part in re.split(r"\d{4}", symptom) if part.strip()]


def refused() -> str:
    """What is said when a program has the port."""
    from tools.lab import parse_port

    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(ValueError) as error:
            parse_port(str(server.getsockname()[1]))
        return str(error.value)


@pytest.mark.parametrize("symptom", [text for line in SYMPTOMS for text in re.findall(r"`([^`]+)`", line)])
def test_symptoms_are_what_is_really_said(symptom, said):
    if symptom in OF_OTHERS:
        return
    if symptom.startswith("port "):
        assert re.sub(r"\d+", "N", refused()) == re.sub(r"\d+", "N", symptom)
        return
    assert all(part in said for part in parts(symptom))


@pytest.mark.parametrize("remedy", [text for line in REMEDIES for text in re.findall(r"`([^`]+)`", line)])
def test_remedies_can_be_typed(remedy):
    *settings, program = re.match(r"((?:[A-Z_]+=\S* )*)(\S+)", remedy).groups()
    known = {"make", "python", "python3", "sudo", "git", ".venv/bin/python", ".venv"}
    assert program in known, remedy
    if program == "make":
        target, *more = remedy.removeprefix("".join(settings)).split()[1:]
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
        assert all(setting.split("=")[0] in MAKEFILE for setting in more)
    if remedy.startswith("python -m llmcourse "):
        assert callable(build_parser().parse_args(shlex.split(remedy)[3:]).run)
    assert all((ROOT / path).exists() for path in re.findall(r"(?:tools|notebooks)\b\S*", remedy))


def test_every_line_of_symptoms_was_read():
    assert len(SYMPTOMS) > 14 and SYMPTOMS[0].startswith("`port") and SYMPTOMS[-1].strip() == "anything else"


# The map

MAP = re.search(r"^## The map\n+```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)[1].splitlines()


def named(lines: list[str]) -> list[str]:
    """What the map names at the beginning of its lines."""
    heads = [re.match(r" *((?:[\w./]+, )*[\w./]+)", line)[1] for line in lines]
    return [name.removesuffix("/") for head in heads for name in head.split(", ")]


def test_the_map_is_of_what_is_there():
    top = named([line for line in MAP if not line.startswith(" ")])
    assert [name for name in top if not (ROOT / name).is_dir()] == []
    inside = named([line for line in MAP if line.startswith(" ")])
    package = ROOT / "llmcourse"
    assert [
        name for name in inside if not ((package / name).is_dir() or (package / f"{name}.py").is_file())
    ] == []
    there = {path.stem for path in package.iterdir() if path.name[0] not in "_."}
    assert there - set(inside) == {"arguments"}  # checks of arguments, of no idea of their own
