"""Values over the wire come back as they were, and bytes of any kind do no harm."""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmcourse.grading.answer import Oracle
from llmcourse.grading.process.deadline import Deadline
from llmcourse.grading.process.frames import Closed, Frames, Late, receive, send
from llmcourse.grading.process.wire import DTYPES, Limits, TooLarge, WireError, decode, encode

FEWER = Limits(items=2_000)  # with shapes checked on every call, 200,000 take seconds


def same(a: object, b: object) -> bool:
    """Equal to the last bit and of the same types, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return torch.equal(*(x.detach().contiguous().flatten().view(torch.uint8) for x in (a, b)))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or struct.pack("d", a) == struct.pack("d", b)
    return a == b


@st.composite
def tensors(draw) -> torch.Tensor:
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    size = math.prod(shape) * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype is torch.bool:
        data = bytearray(byte & 1 for byte in data)
    return torch.frombuffer(data, dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


scalars = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats() | st.text()
values = st.recursive(
    scalars | tensors(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(values)
@settings(max_examples=300, deadline=None)
def test_a_value_comes_back_as_it_was(value):
    assert same(decode(encode(value), Limits(depth=64)), value)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_value_or_a_wire_error(data):
    try:
        decode(data)
    except WireError as error:
        assert str(error)


@given(values, st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_message_is_a_value_or_a_wire_error(value, data):
    message = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(message) - 1))
        message[place] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(message))
    except WireError as error:
        assert str(error)


def test_a_tensor_is_sent_as_it_looks_not_as_it_lies():
    base = torch.arange(12.0).reshape(3, 4)
    for view in (base.T, base[:, ::2], base.expand(2, 3, 4), base[1, 2], base.requires_grad_()):
        back = decode(encode(view))
        assert torch.equal(back, view) and not back.requires_grad
    negative = torch.randn(3, dtype=torch.complex64).conj().imag
    assert negative.is_neg() and torch.equal(decode(encode(negative)), negative)


def test_what_comes_back_is_writable_and_nobody_elses():
    message = encode([torch.zeros(2), torch.zeros(2)])
    first, second = decode(message)
    first.add_(1)
    assert second.tolist() == [0, 0] and decode(message)[0].tolist() == [0, 0]


class Evil(list):
    def __eq__(self, other):
        return True


class Seven(float):
    pass


class Tall(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Evil(), "a list subclass Evil, must be a plain list"),
        ([1, {"x": Seven(7)}], "at [1]['x']: a float subclass Seven, must be a plain float"),
        (torch.zeros(2).as_subclass(Tall), "a torch.Tensor subclass Tall"),
        (torch.nn.Parameter(torch.ones(2)), "a torch.Tensor subclass torch.Parameter"),
        (
            np.float64(1),
            "a float subclass numpy.float64, must be a plain float; float(…) makes a plain float",
        ),
        (np.float32(1), "list, tuple, dict or tensor; float(…) makes a plain float"),
        ([np.int64(1)], "a numpy.int64, must be None, a bool, int"),
        (np.int64(1), "list, tuple, dict or tensor; int(…) makes a plain int"),
        (np.zeros(2), "a numpy.ndarray, must be None, a bool"),
        ((number for number in ()), "a generator, must be"),
        (print, "a builtin_function_or_method"),
        ({1: 2}, "at [1]: under a key that is an int, must be a str"),
        ("\ud800", "half of a surrogate pair"),
        (torch.zeros(2, dtype=torch.complex64), "a complex64 tensor"),
        (torch.zeros(2, 2).to_sparse(), "must be dense"),
        (torch.empty(2, device="meta"), "on meta"),
        (Oracle("logits"), "an Oracle"),
        (object(), "an object, must be"),
    ],
)
def test_other_types_are_named(value, message):
    with pytest.raises(WireError) as caught:
        encode(value)
    assert message in str(caught.value) and not isinstance(caught.value, TooLarge)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


def circle() -> list:
    value: list = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        nested(17),
        circle(),
        [0] * 2_001,
        2**63,
        -(2**70),
        10**5000,
        "x" * (5 << 20),
        ["x" * (1 << 20)] * 5,
        torch.zeros(5 << 20),
        [torch.zeros(3 << 20)] * 2,
        torch.zeros(1).expand(1 << 50),
        torch.empty(0, 1 << 40),
    ],
    ids=lambda value: type(value).__name__,
)
def test_too_much_is_refused_before_it_is_made(value):
    started = time.process_time()
    with pytest.raises(TooLarge):
        encode(value, FEWER)
    assert time.process_time() - started < 2


def test_the_largest_that_is_allowed_passes():
    for value in (nested(16), [0] * 1_999, 2**63 - 1, torch.zeros((4 << 20) - 100)):
        assert same(decode(encode(value, FEWER), FEWER), value)


def message(header: object, raw: bytes = b"") -> bytes:
    """What a forger would write."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">I", len(text)) + text + raw


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "header's length"),
        (b"\xff\xff\xff\xff{}", "header's length"),
        (message(b"{"), "no JSON"),
        (message(b"\xff\xfe"), "no JSON"),
        (message(["x", "float128", [1]], bytes(16)), "unknown dtype 'float128'"),
        (message(["x", ["float32"], [1]], bytes(4)), "unknown dtype"),
        (message(["x", "float32", [3]], bytes(8)), "needs 12"),
        (message(["x", "float32", [1]], bytes(8)), "4 bytes are left over"),
        (message(["x", "float32", [-1]], bytes(4)), "no list of sizes"),
        (message(["x", "float32", [True]], bytes(4)), "no list of sizes"),
        (message(["x", "float32", 4], bytes(4)), "no list of sizes"),
        (message(["x", "bool", [1]], b"\x02"), "neither 0 nor 1"),
        (message(["x", "float32"]), "known tag"),
        (message([]), "known tag"),
        (message([["l"]]), "known tag"),
        (message(["o", "logits"]), "known tag"),
        (message(b'{"a": 1, "a": 2}'), "one key twice"),
        (message(b'"\\ud800"'), "surrogate"),
        (message(b'{"\\ud800": 1}'), "surrogate"),
    ],
)
def test_a_forged_message_is_no_value(data, words):
    with pytest.raises(WireError) as caught:
        decode(data)
    assert words in str(caught.value) and not isinstance(caught.value, TooLarge)


@pytest.mark.parametrize(
    "data",
    [
        message(b"9" * 5000),
        message(b"1" + b"0" * 30),
        message(b"1." + b"0" * 5000),
        message(b'["l",' * 100_000 + b"1" + b"]" * 100_000),
        message(b'["l",' * 20 + b"1" + b"]" * 20),
        message(b'["l"' + b",0" * 2_001 + b"]"),
        message(b'["l"' + b',"' + b"x" * (5 << 20) + b'"]'),
        message(["x", "float32", [1 << 40]]),
        message(["x", "float32", [0, 1 << 62, 1 << 62]]),
        message(["x", "float32", [1] * 100], bytes(4)),
        bytes(17 << 20),
    ],
    ids=lambda data: f"{data[4:12]!r}",
)
def test_a_forged_giant_is_refused_in_no_time(data):
    started = time.process_time()
    with pytest.raises(TooLarge):
        decode(data, FEWER)
    assert time.process_time() - started < 2


def test_oracles_pass_only_where_they_are_asked_for():
    data = encode({"model": Oracle("logits")}, oracles=True)
    assert decode(data, oracle=Oracle) == {"model": Oracle("logits")}
    with pytest.raises(WireError):
        decode(data)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_frames_cross_a_socket_that_holds_less_than_they_do(pair):
    ours, theirs = pair
    sent = [b"", b"x", bytes(range(256)) * 10_000]
    thread = threading.Thread(target=lambda: [send(theirs, one, Deadline(10.0)) for one in sent])
    thread.start()
    assert [receive(ours, Deadline(10.0)) for _ in sent] == sent
    thread.join()


def test_deadlines_hold_for_reading_and_writing(pair):
    ours, theirs = pair
    started = time.monotonic()
    with pytest.raises(Late):
        receive(ours, Deadline(0.05))
    theirs.send(b"\0\0\0\x09half")
    with pytest.raises(Late):
        receive(ours, Deadline(0.05))
    with pytest.raises(Late):
        send(ours, bytes(10 << 20), Deadline(0.1))
    assert time.monotonic() - started < 10


def test_the_end_of_the_other_side_is_told(pair):
    ours, theirs = pair
    theirs.send(b"\0\0\0\x09half")
    theirs.close()
    with pytest.raises(Closed):
        receive(ours)
    with pytest.raises(Closed):
        send(ours, b"x")


def test_a_giant_length_is_refused_unread(pair):
    ours, theirs = pair
    theirs.send(b"\xff\xff\xff\xff")
    with pytest.raises(TooLarge):
        receive(ours)
    held = Frames(max_bytes=100)
    held.feed(struct.pack(">I", 101))
    with pytest.raises(TooLarge):
        held.pop()


@given(st.lists(st.binary(max_size=20), max_size=5), st.integers(1, 7))
@settings(deadline=None)
def test_frames_come_out_whole_however_they_arrive(sent, step):
    stream = b"".join(struct.pack(">I", len(one)) + one for one in sent)
    held, found = Frames(), []
    for start in range(0, len(stream), step):
        held.feed(stream[start : start + step])
        while (one := held.pop()) is not None:
            found.append(one)
    assert found == sent and len(held) == 0
