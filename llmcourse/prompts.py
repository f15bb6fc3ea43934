"""Openings of texts in the three domains that the embedded models know: prose, verse and code.

Prose and verse are first lines of works in the public domain. Texts are what a model continues; put
`<|endoftext|>` before them, as every document began in training.
"""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

PROSE = (
    "It was the best of times, it was the worst of times,",
    "It is a truth universally acknowledged, that a single man",
    "Call me Ishmael. Some years ago",
    "Happy families are all alike; every unhappy family",
    "Alice was beginning to get very tired of sitting by her sister",
    "Once upon a time there was a king who had",
    "There was once upon a time a poor woodcutter",
    "All children, except one, grow up.",
    "To Sherlock Holmes she is always",
    "You don't know about me without you have read",
    "The Mole had been working very hard all the morning,",
    "No one would have believed in the last years of the nineteenth century",
    "Whether I shall turn out to be the hero of my own life,",
    "Dorothy lived in the midst of the great Kansas prairies,",
    '"Christmas won\'t be Christmas without any presents,"',
    "My father's family name being Pirrip,",
    "In the beginning God created",
    "The studio was filled with the rich odour of",
    "Buck did not read the newspapers, or",
    "It was seven o'clock of a very warm evening",
    "He sat down by the fire and",
    '"What is the matter?" said',
    "The old woman looked at him and",
    "They walked along the road until",
    '"I am very glad to see you," said the',
    "The wind was blowing from the north, and the ship",
    "The princess wept so bitterly that",
    "Prince Andrew looked at Pierre with",
    "Mr. Pickwick took off his",
    "She opened the door and saw",
    "In a village of La Mancha, the name of which",
    "The Time Traveller (for so it will be convenient to",
    "Marley was dead: to begin with.",
    "When the sun rose the next morning,",
)

VERSE = (
    "《静夜思》李白\n床前看月光，",
    "《登鹳雀楼》王之涣\n白日依山尽，",
    "《春晓》孟浩然\n春眠不觉晓，",
    "《相思》王维\n红豆生南国，",
    "《江雪》柳宗元\n千山鸟飞绝，",
    "《春望》杜甫\n国破山河在，",
    "《早发白帝城》李白\n朝辞白帝彩云间，",
    "《望庐山瀑布》李白\n日照香炉生紫烟，",
    "《枫桥夜泊》张继\n月落乌啼霜满天，",
    "《清明》杜牧\n清明时节雨纷纷，",
    "《乌衣巷》刘禹锡\n朱雀桥边野草花，",
    "《鹿柴》王维\n空山不见人，",
    "《送元二使安西》王维\n渭城朝雨浥轻尘，",
    "《凉州词》王翰\n葡萄美酒夜光杯，",
    "《出塞》王昌龄\n秦时明月汉时关，",
    "《登高》杜甫\n风急天高猿啸哀，",
    "《锦瑟》李商隐\n锦瑟无端五十弦，",
    "《黄鹤楼》崔颢\n昔人已乘黄鹤去，",
    "《泊秦淮》杜牧\n烟笼寒水月笼沙，",
    "《寻隐者不遇》贾岛\n松下问童子，",
    "《水调歌头》苏轼\n明月几时有，",
    "《虞美人》李煜\n春花秋月何时了，",
    "《声声慢》李清照\n寻寻觅觅，",
    "《念奴娇》苏轼\n大江东去，",
    "《满江红》岳飞\n怒发冲冠，",
    "《如梦令》李清照\n昨夜雨疏风骤，",
    "《鹊桥仙》秦观\n纤云弄巧，",
    "《雨霖铃》柳永\n寒蝉凄切，",
    "《青玉案》辛弃疾\n东风夜放花千树。",
    "《浣溪沙》晏殊\n一曲新词酒一杯。",
    "《卜算子》陆游\n驿外断桥边，",
    "《送友人》李白\n",
    "《秋夜》白居易\n",
)

CODE = (
    "def read_lines(path):\n",
    "class Stack:\n    def __init__(self",
    "import os\nimport sys\n",
    "def fibonacci(n):\n",
    "class Node:\n    def __init__(self, value",
    "def main():\n    parser = argparse.ArgumentParser(",
    "    def test_empty(self):\n",
    "for name, value in",
    "    def __repr__(self):\n",
    "try:\n    import numpy as np\n",
)

CODE_MODULES = (
    "abc.py",
    "argparse.py",
    "ast.py",
    "base64.py",
    "bisect.py",
    "calendar.py",
    "codecs.py",
    "configparser.py",
    "contextlib.py",
    "copy.py",
    "csv.py",
    "dataclasses.py",
    "difflib.py",
    "enum.py",
    "fractions.py",
    "functools.py",
    "gzip.py",
    "heapq.py",
    "inspect.py",
    "io.py",
    "json/decoder.py",
    "json/encoder.py",
    "logging/__init__.py",
    "operator.py",
    "os.py",
    "queue.py",
    "random.py",
    "shutil.py",
    "statistics.py",
    "string.py",
    "tempfile.py",
    "textwrap.py",
    "unittest/case.py",
)


def first_function(source: str, num_lines: int = 2) -> str:
    """The first `def` of a Python file, or `class` where it has none, and the line after it.

    Raises:
        ValueError: the file has neither.
    """
    match = re.search(r"^ *def .*$", source, re.MULTILINE) or re.search(r"^class .*$", source, re.MULTILINE)
    if match is None:
        raise ValueError(f"source must hold a def or a class, got {source[:40]!r}; give another module")
    lines = source[match.start() :].splitlines()
    return "\n".join(lines[:num_lines]) + "\n"


def standard_library() -> list[str]:
    """The first function of 33 modules of the running Python: real code with nothing to download."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [first_function((folder / name).read_text(encoding="utf-8")) for name in CODE_MODULES]


def one_hundred() -> list[str]:
    """34 openings of prose, 33 of poems, 33 of Python."""
    return [*PROSE, *VERSE, *standard_library()]
