import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackllama_console.sanitise import log_line, one_line, sanitise

CONTROLS = [*range(9), *range(11, 32), *range(127, 160)]
UNSAFE = [*CONTROLS, 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain", "plain"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("ünïcödé 漢字 🙂 [/INST] [bold]", "ünïcödé 漢字 🙂 [/INST] [bold]"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[?1049h\x1b[1;2Habc", "abc"),
        ("\x9b31mred", "red"),
        ("\x1b]52;c;aGVsbG8=\x07x", "x"),
        ("\x1b]0;title\x1b\\x", "x"),
        ("\x9d0;title\x9cx", "x"),
        ("\x1bPq#0\x1b\\x", "x"),
        ("\x1b_app\x1b\\x\x1b^pm\x1b\\y\x1bXsos\x1b\\z", "xyz"),
        ("\x1b(Bx\x1b7y\x1bcz", "xyz"),
        ("\x1b]52;c;never ended", "52;c;never ended"),  # the rest is text, not swallowed
        ("\x1b", ""),
        ("\x1b\x1b[2J[2J", "[2J"),
        ("a\x00b\x07c\x08d\re\x7ff", "abcdef"),
        ("\u202eabc\u202c\u2066d\u2069", "abcd"),
        ("a\u2028b", "ab"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
    ],
)
def test_sanitise_removes_known_sequences(text: str, clean: str) -> None:
    assert sanitise(text) == clean


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from([*map(chr, UNSAFE), *"[]PX^_;\\m2Jc"]))))
def test_sanitise_is_safe_and_idempotent(text: str) -> None:
    clean = sanitise(text)
    assert not {ord(character) for character in clean} & set(UNSAFE)
    assert sanitise(clean) == clean
    clean.encode()


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_sanitise_keeps_harmless_text(text: str) -> None:
    assert sanitise(text) == text


def test_sanitise_disarms_payloads(payloads: list[str], assert_clean: Callable[[str], None]) -> None:
    for payload in payloads:
        assert_clean(sanitise(payload))
        assert_clean(one_line(payload))
        assert_clean(log_line(payload))


@pytest.mark.parametrize("part", ["\x9d", "\x1b]", "\x1b[", "\x9b0", "\x1b[0;", "\x1b]a", "\x90\t", "\u202e"])
def test_sanitise_takes_linear_time(part: str) -> None:
    started = time.process_time()
    sanitise(part * 300_000)
    assert time.process_time() - started < 2  # quadratic would take hours


def test_sanitise_keeps_lines_after_a_string_sequence() -> None:
    assert sanitise("\x1b]52;c;open\nsecond line\x07\nthird") == "52;c;open\nsecond line\nthird"


def test_one_line_and_log_line_are_single_lines() -> None:
    assert one_line("  a\n b\t\tc ") == "a b c"
    assert log_line(" 10%|#   |\r 50%|##  |\r100%|####|\n") == "100%|####|"
    assert log_line("ends in a return\r\n") == "ends in a return"
