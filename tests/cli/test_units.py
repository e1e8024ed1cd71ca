"""Numbers as people read them: one spelling everywhere."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackllama_console.results import table
from stackllama_console.units import compact, cut, duration, fixed, number, quantity, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nan"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (0.0, "0"),
        (-0.0, "0"),
        (60.0, "60"),
        (0.4142135, "0.4142"),
        (0.5, "0.5"),
        (-1.5, "-1.5"),
        (1.00001, "1"),
        (2e-5, "2e-5"),
        (1e-4, "1e-4"),
        (0.001, "0.001"),
        (1.41e-5, "1.41e-5"),
        (123.456, "123.5"),
        (0.00123, "0.00123"),
        (-0.00567812, "-0.00568"),
        (12_345, "12,345"),
        (-123_456.7, "-123,457"),
        (999_999.7, "1M"),
        (1e7, "10M"),
        (1.2345e9, "1.234G"),
        (3e20, "3e20"),
    ],
)
def test_number_has_at_most_eight_characters(value: float | None, text: str) -> None:
    assert number(value) == text


@given(st.floats(allow_nan=False) | st.floats(-1e9, 1e9) | st.floats(-1, 1), st.sampled_from([2, 3, 4]))
def test_no_number_is_longer_or_has_another_exponent(value: float, digits: int) -> None:
    for text in (number(value, digits=digits), number(value, "tokens/s")):
        assert len(text) <= 8
        assert "e-0" not in text
        assert "e+" not in text


def test_noise_is_zero_beside_something_large_only() -> None:
    assert (number(-2e-9, beside=3), number(-2e-9, beside=-3), number(-2e-9)) == ("0", "0", "-2e-9")
    assert number(2e-9, beside=1e-4) == "2e-9"  # a learning rate at the end of its decay


def test_a_quantity_has_its_unit() -> None:
    assert [quantity(rate, "tokens/s") for rate in (960, 1534, 15_321.4, 153_214)] == [
        "960 tokens/s",
        "1.53k tokens/s",
        "15.3k tokens/s",
        "153k tokens/s",
    ]
    assert (quantity(1.25, "seconds"), quantity(3 * 2**30, "bytes"), quantity(57, "tokens"), quantity(0.5)) == (
        "1.25 s",
        "3.0 GiB",
        "57 tokens",
        "0.5",
    )


def test_a_fixed_number_of_places_has_no_negative_zero() -> None:
    assert (fixed(-2e-9, 3), fixed(-1.5, 2), fixed(12_345.6, 3)) == ("0.000", "-1.50", "12,346")


def test_a_table_of_results_shows_noise_as_zero() -> None:
    ppo = {"state": "finished", "seconds": 1.0, "before": {"kl": -2e-9}, "after": {"kl": 3.0}, "eval_prompts": 4}
    assert "0.000 →      3.000" in next(line for line in table({"ppo": ppo}) if "KL" in line)


def test_units_are_readable() -> None:
    assert [duration(s) for s in (0, 59.4, 60, 185, 7620, 4 * 86400 + 3 * 3600)] == [
        "0 s",
        "59 s",
        "1 m 00 s",
        "3 m 05 s",
        "2 h 07 m",
        "4 d 03 h",
    ]
    assert [compact(s) for s in (0, 59.4, 60, 185, 7620, 3600, 4 * 86400 + 3 * 3600, -90)] == [
        "0",
        "59s",
        "1m",
        "3m05s",
        "2h07m",
        "1h",
        "4d3h",
        "-1m30s",
    ]
    assert [size(n) for n in (0, 1023, 1536, 5 * 1024**3, 3 * 1024**4)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "3.0 TiB",
    ]
    assert [cut("abcdef", n) for n in (6, 5, 1, 0)] == ["abcdef", "abcd…", "…", ""]
