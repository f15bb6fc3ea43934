"""One thread, and the tiny family's text."""

import pytest
import torch

from tests.training.tiny import installed_here, write_text


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Sums in one order, so that runs can be compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def text_options(tmp_path_factory) -> list[str]:
    return [*write_text(tmp_path_factory.mktemp("text")), "--held-out", "0.2"]


@pytest.fixture
def tiny_family():
    with installed_here():
        yield
