"""The suite's own guards work: types are checked, the network is closed."""

import os
import socket
from pathlib import Path

import pytest
import torch

from llmcourse.attention import attention_reference
from tests.conftest import NetworkForbidden


def test_shapes_of_public_functions_are_checked():
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(Exception, match="attention_reference"):
        attention_reference(q, q, torch.zeros(1, 2, 5, 4))  # S of keys and values differ


def test_the_network_is_closed():
    # 192.0.2.1 is set aside for documentation (RFC 5737): nobody answers there.
    with socket.socket() as outside, pytest.raises(NetworkForbidden, match=r"192\.0\.2\.1"):
        outside.connect(("192.0.2.1", 80))


def test_this_machine_itself_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())


def test_the_hub_is_offline_and_threads_are_shared_out():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    assert torch.get_num_threads() * workers <= max(os.cpu_count(), workers)


def test_what_must_run_alone_is_marked_where_it_is_found():
    """A file of tests that imports its marks from another would be left out of `pytest -m alone`."""
    marked = [
        path for path in Path(__file__).parent.rglob("*.py") if "pytest.mark.alone" in path.read_text("utf-8")
    ]
    assert len(marked) > 10 and {path.name for path in marked if path.stem[:5] != "test_"} == set()
