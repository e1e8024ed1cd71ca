"""Requests and replies of the chat generator, line by line."""

import msgspec
import pytest

from stackllama_engine.contract.chat_messages import (
    Ask,
    Cancel,
    Delta,
    Done,
    Failure,
    Ready,
    Reply,
    Request,
    decode_reply,
    decode_request,
)


@pytest.mark.parametrize(
    "request_", [Ask(id=1, prompt="How?"), Ask(id=2, prompt="", which=["tuned"], temperature=0), Cancel(cancel=1)]
)
def test_requests_round_trip(request_: Request) -> None:
    assert decode_request(msgspec.json.encode(request_)) == request_


@pytest.mark.parametrize(
    "reply",
    [
        Ready(sides=["tuned"], model="m", note="why"),
        Delta(id=1, which="base", text="\u2028"),
        Done(id=1, which="tuned", tokens=3, seconds=0.5, ended=True),
        Failure(error="no"),
        Failure(error="no", id=3),
    ],
)
def test_replies_round_trip(reply: Reply) -> None:
    assert decode_reply(msgspec.json.encode(reply)) == reply


def test_request_defaults() -> None:
    assert decode_request(b'{"id": 1, "prompt": "x"}') == Ask(
        id=1, prompt="x", which=["base", "tuned"], max_new_tokens=128, temperature=1.0, seed=0
    )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"id": 1}',
        b'{"id": "1", "prompt": "x"}',
        b'{"cancel": null}',
        b'{"id": 1, "prompt": "x", "which": []}',
        b'{"id": 1, "prompt": "x", "which": ["reward"]}',
        b'{"id": 1, "prompt": "x", "temperature": -1}',
        b'{"id": 1, "prompt": "x", "temperature": 1e999}',
        b'{"id": 1, "prompt": "x", "max_new_tokens": 0}',
        b'{"id": 1, "prompt": "x", "seed": -1}',
        b'{"id": 1, "prompt": "x", "max_tokens": 3}',
    ],
)
def test_invalid_requests_are_decode_errors(line: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        decode_request(line)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b'{"ready": false, "sides": [], "model": ""}', b'{"id": 1, "which": "x", "text": ""}']
)
def test_invalid_replies_are_decode_errors(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_reply(line)
