"""Tasks: nothing leaks between sides, neither text of a pair alone says anything, poor data is refused."""

import random
from collections import Counter

import pytest

from llmcourse.early_exit.classifier.tasks import (
    SIDES,
    Example,
    HeldOut,
    Task,
    author_task,
    by_side,
    docstring_task,
    following_task,
    side_of,
)
from llmcourse.early_exit.classifier.tasks.authors import passages
from llmcourse.early_exit.classifier.tasks.docstrings import functions
from llmcourse.early_exit.classifier.tasks.following import neighbours
from llmcourse.early_exit.classifier.tasks.pairs import Pair, far_within, pair_task, strangers

WORDS = ("sea", "king", "rose", "under", "over", "went", "home", "day", "night", "ship", "wind", "and", "the")


def paragraph(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=40))


def books(count: int = 60, paragraphs: int = 24) -> list[str]:
    draw = random.Random(0)
    return ["\n\n".join(paragraph(draw) for _ in range(paragraphs)) for _ in range(count)]


def source(number: int) -> str:
    one = f'''
def first_{number}(x):
    """Return what number {number} makes of it, once."""
    return x + {number}


class C:
    async def second_{number}(self):
        """Wait for number {number}, and then for another."""
        await self.other({number})
'''
    return one


def poems(count: int = 200) -> list[str]:
    draw = random.Random(1)
    authors = ["甲"] * 4 + ["乙"] * 3 + ["丙"] + ["无名氏"] * 9
    lines = lambda: "".join(draw.choices([chr(0x4E00 + code) for code in range(400)], k=7)) + "。"  # noqa: E731
    return [f"《第{n}》{draw.choice(authors)}\n" + "\n".join(lines() for _ in range(8)) for n in range(count)]


@pytest.fixture(scope="module")
def tasks():
    files = {f"{number}.py": source(number) for number in range(60)}
    return docstring_task(files), following_task(books()), author_task(poems(), authors=2)


def test_sides_share_no_document_and_no_text(tasks):
    for task in tasks:
        for attribute in (lambda e: {e.document}, lambda e: set(e.texts)):
            sides = [{x for e in task.side(side) for x in attribute(e)} for side in SIDES]
            assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_shares_of_documents():
    """Of 4,000 documents 600 are expected on each held-out side, deviation 23; five of these are far."""
    sides = by_side(str(number) for number in range(4000))
    assert abs(len(sides["test"]) - 600) < 115 and abs(len(sides["validation"]) - 600) < 115
    assert side_of("17") == side_of("17")


def test_neither_text_of_a_pair_says_anything(tasks):
    for task in tasks[:2]:
        for side in SIDES:
            for place in (0, 1):
                right, wrong = (
                    Counter(e.texts[place] for e in task.side(side) if e.label == label) for label in (1, 0)
                )
                assert right == wrong


def test_where_a_wrong_second_text_is_from(tasks):
    """Of functions from another file, of paragraphs from far away in the same book."""
    for task, at_home in zip(tasks[:2], (False, True), strict=True):
        home = {e.texts[1]: e.document for side in SIDES for e in task.side(side) if e.label == 1}
        strange = [e for side in SIDES for e in task.side(side) if e.label == 0]
        assert strange and all((home[e.texts[1]] == e.document) == at_home for e in strange)
    place = {text: number for book in books() for number, text in enumerate(book.split("\n\n"))}
    assert all(abs(place[e.texts[1]] - place[e.texts[0]] - 1) >= 6 for e in strange)  # 12 pairs: 3 away


def test_far_is_a_quarter_of_a_document_and_all_are_taken_once():
    documents = ["a"] * 9 + ["b"] * 2 + ["a"] * 3
    for seed in range(50):
        taken = far_within(documents, random.Random(seed))
        assert sorted(taken) == list(range(14))
        assert all(documents[place] == documents[other] for place, other in enumerate(taken))
        number = dict(zip([*range(9), *range(11, 14)], range(12), strict=True))
        assert all(3 <= abs(number[place] - number[taken[place]]) <= 9 for place in number)
    with pytest.raises(ValueError, match="places of one document must be 2 or more, got 1"):
        far_within(["a", "a", "b"], random.Random(0))


def test_a_book_with_too_few_pairs_is_left_out():
    short = books(1, 14)[0].replace("sea", "hill")  # seven pairs
    assert following_task([short, *books()]) == following_task(books())


def test_strangers_are_all_taken_once_and_never_at_home():
    documents = ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d"]
    for seed in range(50):
        taken = strangers(documents, random.Random(seed))
        assert sorted(taken) == list(range(10))
        assert all(documents[place] != documents[other] for place, other in enumerate(taken))


def test_one_document_with_more_than_half():
    with pytest.raises(ValueError, match="places of one document must be at most 2, a half, got 3"):
        strangers(["a", "a", "a", "b"], random.Random(0))


def test_functions_lose_their_docstring():
    found = functions(source(3))
    assert [doc for doc, _ in found] == [
        "Return what number 3 makes of it, once.",
        "Wait for number 3, and then for another.",
    ]
    assert found[0][1] == "def first_3(x):\n    return x + 3"
    assert all(doc not in code for doc, code in found)


@pytest.mark.parametrize(
    "text",
    [
        "def f(:",
        'def f():\n    """Too short."""\n    return 1',
        'def f():\n    """A docstring that stands all alone."""',
        "\0",
        "",
    ],
)
def test_sources_without_such_functions(text):
    assert functions(text) == []


def test_another_version_of_a_file_stays_on_its_side():
    files = {f"{number}.py": source(number) for number in range(60)}
    changed = {name: f"# another version\n{text}" for name, text in files.items()}
    for side in SIDES:
        found = [{e.document for e in docstring_task(f).side(side)} for f in (files, changed)]
        assert found[0] == found[1] and all(side_of(name) == side for name in found[0])


def test_no_file_has_more_functions_than_others_may():
    files = {f"{number}.py": source(number) for number in range(60)}
    long = next(name for name in files if side_of(name) == "test")
    files[long] = "".join(source(number) for number in range(100, 140))
    assert len(functions(files[long])) == 80
    for most in (3, 10):
        texts = {e.texts[0] for e in docstring_task(files, per_document=most).test if e.document == long}
        assert len(texts) == most
    with pytest.raises(ValueError, match="per_document must be an integer of at least 1"):
        docstring_task(files, per_document=0)


@pytest.mark.parametrize("text", ["def f(:", "\0", ""])
def test_nothing_is_held_in_what_does_not_parse(text):
    assert not HeldOut(["A docstring that is long."], ["def f():\n    return 1"]).is_in(text + "f return A")


def test_a_string_in_a_held_out_function_may_be_written_otherwise():
    (pair,) = functions('def f(x):\n    """Say it in some way or other."""\n    return x + "it\\tis"\n')
    held_out = HeldOut(["Another docstring, that is."], [pair[1]])
    assert held_out.is_in("def f( x ):\n    return (x + 'it\\x09is')\n")
    assert not held_out.is_in("def f(x):\n    return x - 'it\\tis'\n")


def test_neighbours_are_neighbours_and_no_paragraph_is_used_twice():
    document = books(1, 9)[0].replace("\n\n", "\n\nYes.\n\n", 1)
    paragraphs = document.split("\n\n")
    found = neighbours(document, 100)
    assert len(found) == 4 and len(neighbours(document, 2)) == 2
    for first, second in found:
        assert paragraphs.index(second) == paragraphs.index(first) + 1
    assert len({text for pair in found for text in pair}) == 8


def test_authors_are_as_many_as_each_other_and_known_by_name(tasks):
    task = tasks[2]
    assert task.classes == ("甲", "乙")
    for side in SIDES:
        counts = Counter(example.label for example in task.side(side))
        assert counts[0] == counts[1] > 0
        assert not any("《" in text for example in task.side(side) for text in example.texts)
    assert passages("《t》a\n" + "\n".join("123456789"))[1] == "7\n8\n9"


def test_the_same_seed_gives_the_same_task():
    assert following_task(books(), seed=3) == following_task(books(), seed=3)
    assert following_task(books(), seed=3) != following_task(books(), seed=4)


class TestRefused:
    def example(self, document, label):
        return Example(document, (document,), label)

    def task(self, **changes):
        sides = {side: tuple(self.example(f"{side}{label}", label) for label in (0, 1)) for side in SIDES}
        return Task("t", **{"classes": ("no", "yes"), **sides} | changes)

    def test_one_that_is_fine(self):
        assert not self.task().is_pair

    @pytest.mark.parametrize("classes", [(), ("yes",)])
    def test_one_class(self, classes):
        with pytest.raises(ValueError, match="classes of t must be two or more"):
            self.task(classes=classes)

    def test_two_classes_of_one_name(self):
        with pytest.raises(ValueError, match=r"classes of t must be named once each, got \['a'\]; call"):
            self.task(classes=("a", "a"))

    @pytest.mark.parametrize("side", SIDES)
    def test_an_empty_side(self, side):
        with pytest.raises(ValueError, match=f"examples of t for {side} must be at least 1, got 0"):
            self.task(**{side: ()})

    @pytest.mark.parametrize("side", SIDES)
    @pytest.mark.parametrize("labels", [(0, 0), (0, 1, 2), (1,)])
    def test_a_side_with_other_classes(self, side, labels):
        examples = tuple(self.example(f"{side}{n}", label) for n, label in enumerate(labels))
        with pytest.raises(ValueError, match=f"examples of t for {side} must be of all 2 classes"):
            self.task(**{side: examples})

    def test_a_document_on_two_sides(self):
        with pytest.raises(ValueError, match="a document of t must be on one side, got train, test"):
            self.task(test=tuple(self.example(f"train{label}", label) for label in (0, 1)))

    def test_too_little_text(self):
        with pytest.raises(ValueError, match="must be at least 1, got 0; give more text"):
            docstring_task({})
        with pytest.raises(ValueError, match="examples of following"):
            following_task(["short"])
        with pytest.raises(ValueError, match="classes of author must be two or more, got 0"):
            author_task(["no poem"])

    @pytest.mark.parametrize("bad", [0, -1])
    def test_numbers(self, bad):
        with pytest.raises(ValueError, match="rounds must be an integer of at least 1"):
            pair_task("p", [Pair("d", "a", "b")], rounds=bad)
        with pytest.raises(ValueError, match="per_document must be"):
            following_task(books(), per_document=bad)
        with pytest.raises(ValueError, match="authors must be an integer of at least 2"):
            author_task(poems(), authors=bad)
