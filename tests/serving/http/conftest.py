import pytest

from llmcourse.tokenizer import Tokenizer
from tests.tiny_tokenizer import tiny_tokenizer_json


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    return Tokenizer(folder)
