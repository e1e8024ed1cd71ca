"""The canvas dot by dot, and the axes: ranges, hysteresis, ticks, labels."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stackllama_console.tui.widgets.axis import (
    Axis,
    log_axis,
    step_label,
    step_range,
    step_ticks,
    value_axis,
    value_ticks,
)
from stackllama_console.tui.widgets.canvas import ASCII_MARKS, BAND, Canvas
from stackllama_console.units import number


def text(canvas: Canvas) -> list[str]:
    return ["".join(canvas.row(row)[0]) for row in range(canvas.height)]


def test_each_dot_is_its_own_bit() -> None:
    bits = []
    for column in range(2):
        for row in range(4):
            canvas = Canvas(1, 1)
            canvas.fill(column, (row, row), 1)
            bits.append(ord(text(canvas)[0]) - 0x2800)
    assert bits == [0x01, 0x02, 0x04, 0x40, 0x08, 0x10, 0x20, 0x80]


def test_a_span_fills_whole_cells_and_parts_of_cells() -> None:
    canvas = Canvas(1, 3)
    canvas.fill(0, (2, 9), 1)
    assert text(canvas) == ["⡄", "⡇", "⠃"]
    assert Canvas(2, 1).row(0) == ([" ", " "], bytearray(2))


def test_neighbours_that_do_not_touch_are_joined() -> None:
    canvas = Canvas(1, 2)
    assert canvas.curve([(7, 7), (0, 0)], 1) == [(7, 7), (0, 6)]
    assert text(canvas) == ["⢸", "⡸"]


def test_far_points_are_joined_by_a_straight_line() -> None:
    canvas = Canvas(4, 2)
    filled = canvas.curve([(7, 7), None, None, None, None, None, None, (0, 0)], 1)
    assert [span for span in filled if span is None] == []
    assert text(canvas) == ["  ⡠⠊", "⡠⠊  "]


def test_a_line_is_not_carried_across_a_gap() -> None:
    canvas = Canvas(4, 1)
    spans = [(1, 1), None, None, None, None, None, None, (1, 1)]
    filled = canvas.curve(spans, 1, [False, False, False, True, False, False, False, False])
    assert filled == spans
    assert text(canvas) == ["⠂  ⠐"]


def test_a_curve_pushes_the_band_out_of_its_cells_alone() -> None:
    canvas = Canvas(2, 1)
    for column in range(4):
        canvas.fill(column, (0, 3), BAND)
    canvas.curve([(1, 1), (1, 1), None, None], 2)
    cells, owners = canvas.row(0)
    assert (cells[0], list(owners)) == ("⠒", [2, BAND])
    assert cells[1] == "⢕"  # every second dot


def test_the_band_keeps_a_spike_of_one_dot() -> None:
    for column in range(2):
        for row in range(4):
            canvas = Canvas(1, 1)
            canvas.fill(column, (row, row), BAND)
            assert text(canvas) != [" "]


def test_plain_characters_tell_curves_apart() -> None:
    canvas = Canvas(6, 2, ascii_only=True)
    for owner in range(1, 7):
        canvas.fill(owner - 1, (0, 0), owner)
    canvas.fill(0, (1, 1), BAND)
    canvas.mark(2, 1, 3)
    assert text(canvas) == [ASCII_MARKS, ". +   "]


def test_a_constant_has_room_around_it() -> None:
    for value in (0.0, 5.0, -3.0, 1e-5, 1e12, 5e-324, -1.7e308):
        axis = value_axis(value, value)
        assert axis.low < axis.high
        assert axis.low <= max(-1e300, value) <= axis.high


def test_an_axis_stays_while_the_data_fits_and_fills_it() -> None:
    axis = value_axis(0.0, 0.9)
    assert (axis.low, axis.high) == (0.0, 1.0)
    assert value_axis(0.1, 1.0, axis) is axis
    assert value_axis(0.1, 0.6, axis) is axis
    assert value_axis(0.1, 1.01, axis).high == pytest.approx(1.2)
    assert value_axis(0.1, 0.2, axis).high == pytest.approx(0.2)
    assert value_axis(1.0, 9.0, log_axis(1.0, 9.0)).log is False


def test_a_slowly_growing_value_moves_the_axis_seldom() -> None:
    axis, moves = value_axis(0.0, 1.0), 0
    for index in range(1000):
        new = value_axis(0.0, 1 + index / 100, axis)
        moves += new is not axis
        axis = new
    assert moves <= 15


def test_a_log_axis_goes_from_one_nice_value_to_another() -> None:
    axis = log_axis(0.003, 40)
    assert (axis.low, axis.high) == (pytest.approx(0.002), 50)
    assert [label for _, label in value_ticks(axis, 20)] == ["0.01", "0.1", "1", "10"]
    assert axis.place(0.0) == axis.place(-5.0) == 0.0
    assert log_axis(0.004, 30, axis) is axis
    assert log_axis(1, 1).low < 1 < log_axis(1, 1).high


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-3, 17, ["-5", "0", "5", "10", "15", "20"]),
        (0, 12345, ["0", "5k", "10k", "15k"]),
        (1e6, 1.2e6, ["1.00M", "1.05M", "1.10M", "1.15M", "1.20M"]),
        (0, 2e-5, ["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]),
    ],
)
def test_ticks_line_up_at_1_2_5(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in value_ticks(value_axis(low, high), 15)] == labels


def test_bytes_have_ticks_in_their_own_unit() -> None:
    axis = value_axis(10 * 2**30, 79.3 * 2**30, unit="bytes")
    assert value_ticks(axis, 15, unit="bytes")[1] == (20 * 2**30, "20 GiB")


def test_bytes_have_powers_of_two_on_a_log_axis() -> None:
    mib = 2.0**20
    wide = log_axis(300 * mib, 5000 * mib)
    assert [label for _, label in value_ticks(wide, 15, unit="bytes")] == [
        "256 MiB",
        "512 MiB",
        "1 GiB",
        "2 GiB",
        "4 GiB",
        "8 GiB",
    ]
    assert value_ticks(wide, 5, unit="bytes") == [(256 * mib, "256 MiB"), (2048 * mib, "2 GiB")]
    narrow = log_axis(970 * mib, 1000 * mib)
    assert [label for _, label in value_ticks(narrow, 15, unit="bytes")] == ["954 MiB", "1.9 GiB"]


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 6, 7, 8])
def test_a_low_plot_has_labels_too(rows: int) -> None:
    mib = 2.0**20
    loss = [label for _, label in value_ticks(value_axis(1.12, 1.38), rows)]
    memory = [label for _, label in value_ticks(value_axis(768 * mib, 790 * mib, unit="bytes"), rows, unit="bytes")]
    assert loss == (["1.2", "1.4"] if rows > 2 else ["1.10", "1.40"])
    assert memory == (["770 MiB", "780 MiB", "790 MiB"] if rows > 3 else ["765 MiB", "790 MiB"])


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e9), st.integers(1, 40))
def test_an_axis_of_any_height_has_a_label(low: float, length: float, rows: int) -> None:
    axes = [value_axis(low, low + length)] + ([log_axis(low, low + length)] if low > 0 else [])
    for axis in axes:
        ticks = [value for value, _ in value_ticks(axis, rows)]
        assert len(ticks) >= min(rows, 2)
        assert ticks == sorted(set(ticks))
        height = axis.high - axis.low
        # a tick is a float like any other: of 1e9 it is right to 1e-7, and the axis may be 1e-3 high
        slack = 1e-6 + 2 * math.ulp(max(abs(axis.low), abs(axis.high))) / height
        assert all(-slack <= (value - axis.low) / height <= 1 + slack for value in ticks)


def test_a_step_axis_shows_all_and_little_more() -> None:
    assert (step_range(1, 1), step_range(0, 1000), step_range(1, 1050)) == ((0.5, 1.5), (0, 1000), (0, 1200))
    assert [label for _, label in step_ticks(0, 20_000, 70)] == ["0", "5k", "10k", "15k", "20k"]
    assert [label for _, label in step_ticks(12_000, 12_040, 70)] == ["12,000", "12,010", "12,020", "12,030", "12,040"]
    assert (step_label(1_500_000, 100_000), step_label(999), step_label(1234)) == ("1.5M", "999", "1,234")


MAGNITUDE = st.floats(min_value=1e-290, max_value=1e290) | st.floats(min_value=1e-9, max_value=1e12)


@given(MAGNITUDE, st.sampled_from([-1, 1]), st.sampled_from([0, 1e-9, 0.01, 1, 1e3, 1e8]), st.integers(1, 40))
def test_no_label_is_longer_than_eight(value: float, sign: int, spread: float, rows: int) -> None:
    low = value * sign
    high = low + abs(low) * spread
    assert len(number(low)) <= 8
    axes = [value_axis(low, high)] + ([log_axis(low, high)] if low > 0 else [])
    for axis in axes:
        assert axis.low <= low + abs(low) * 1e-9
        assert axis.high >= high - abs(high) * 1e-9
        assert all(len(label) <= 8 for _, label in value_ticks(axis, rows))


@given(st.floats(0, 1e15), st.floats(0, 1e15), st.integers(1, 40))
@example(0.0, 5e-324, 9)
@example(6.0882819255e-314, 6.0882819315e-314, 40)
def test_no_label_of_bytes_is_longer_than_eight(one: float, other: float, rows: int) -> None:
    axis = value_axis(min(one, other), max(one, other), unit="bytes")
    assert all(len(label) <= 8 for _, label in value_ticks(axis, rows, unit="bytes"))


@given(st.integers(-(10**14), 10**14), st.integers(0, 10**15), st.integers(1, 200))
@example(-124_859_769_501, 4502, 1)
def test_a_step_axis_holds_its_steps(first: int, length: int, columns: int) -> None:
    start, stop = step_range(first, first + length)
    assert start < stop
    assert start <= first
    assert stop >= first + length
    assert all(len(label) <= 11 for _, label in step_ticks(start, stop, columns))


def test_axis_places_between_its_ends() -> None:
    axis = Axis(0, 10)
    assert [axis.place(value) for value in (-5, 0, 5, 10, 99)] == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("axis", "rows", "values"), [(Axis(-4, 4), 7, [-4, 0, 4]), (Axis(-4, 4), 12, [-4, -2, 0, 2, 4])]
)
def test_ticks_are_two_rows_apart_so_that_rounding_hardly_shows(axis: Axis, rows: int, values: list[float]) -> None:
    assert [value for value, _ in value_ticks(axis, rows)] == values
