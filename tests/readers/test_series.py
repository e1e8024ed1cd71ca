"""Series: columns and smoothing by hand and against brute force, gaps, rewinds, the pyramid."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackllama_console.readers.series import Series

NAN = math.nan


def make(points: dict[float, float | None], name: str = "loss") -> Series:
    series = Series(name)
    for step, value in points.items():
        series.append(step, value)
    return series


def test_series_keeps_points_and_gaps_apart() -> None:
    series = make({1: 5.0, 2: NAN, 3: 7.0, 4: None, 5: math.inf, 6: -math.inf})
    assert list(series.steps) == [1, 3]
    assert list(series.values) == [5, 7]
    assert list(series.gaps) == [2, 4, 5, 6]
    assert (len(series), series.first, series.last, series.span) == (2, 5, 7, (1, 6))


def test_empty_series_has_no_values() -> None:
    series = Series("loss")
    assert (len(series), series.first, series.last, series.span, series.nearest(3)) == (0, None, None, None, None)
    assert series.columns(0, 10, 2) == [None, None]
    assert series.smoothed(0.9).columns(0, 10, 1) == [None]


def test_series_of_gaps_has_a_span_and_no_value() -> None:
    series = make({3: NAN, 9: NAN})
    assert (series.span, series.last, series.gap_columns(0, 10, 2)) == ((3, 9), None, [True, True])


def test_every_change_raises_the_version() -> None:
    series = Series("loss")
    seen = [series.version]
    for step, value in ((1, 1.0), (2, NAN), (1, 3.0)):
        series.append(step, value)
        seen.append(series.version)
    series.extend([5, 6], [1.0, 2.0])
    seen.append(series.version)
    assert seen == sorted(set(seen))


def test_columns_match_values_worked_by_hand() -> None:
    series = make({0: 4.0, 1: 9.0, 2: 1.0, 5: 3.0, 9: 8.0, 10: 2.0})
    # [0, 2.5) [2.5, 5) [5, 7.5) [7.5, 10]
    assert series.columns(0, 10, 4) == [(1, 9), None, (3, 3), (2, 8)]
    assert series.columns(5, 5, 1) == [(3, 3)]
    assert series.columns(0, 10, 0) == []


def test_columns_of_irregular_steps_are_by_range() -> None:
    series = make({0: 1.0, 1: 2.0, 2: 3.0, 1000: 4.0})
    assert series.columns(0, 1000, 4) == [(1, 3), None, None, (4, 4)]


def test_gap_columns_mark_ranges_with_gaps() -> None:
    assert make({1: NAN, 2: 1.0, 7: NAN, 8: NAN}).gap_columns(0, 8, 4) == [True, False, False, True]


@pytest.mark.parametrize("bounds", [(5, 1, 3), (0, math.inf, 3), (NAN, 1, 3), (0, 1, -1)])
def test_columns_refuses_invalid_ranges(bounds: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="ranges from"):
        make({1: 1.0}).columns(*bounds)


def test_columns_keep_a_spike_of_one_point() -> None:
    series = Series("loss")
    series.extend(range(100_000), [0.5] * 100_000)
    series.append(100_000, 99.0)
    series.extend(range(100_001, 200_000), [0.5] * 99_999)
    columns = series.columns(0, 199_999, 80)
    assert [column for column in columns if column != (0.5, 0.5)] == [(0.5, 99.0)]


def test_nearest_returns_the_closer_or_the_earlier_point() -> None:
    series = make({0: 1.0, 10: 2.0})
    assert [series.nearest(step) for step in (-5, 4, 5, 6, 99)] == [(0, 1), (0, 1), (0, 1), (10, 2), (10, 2)]
    assert (series.before(9.5), series.after(9.5), series.before(-1), series.after(10)) == ((0, 1), (10, 2), None, None)


def test_repeated_step_drops_later_points() -> None:
    series = make({1: 1.0, 2: 2.0, 3: NAN, 4: 4.0, 5: NAN})
    series.append(3, 30.0)
    assert (list(series.steps), list(series.values), list(series.gaps)) == ([1, 2, 3], [1, 2, 30], [])
    series.append(2, NAN)
    assert (list(series.steps), list(series.gaps), series.span) == ([1], [2], (1, 2))
    series.append(0, 7.0)
    assert (list(series.values), list(series.gaps)) == ([7], [])


def test_gap_rewinds_and_is_rewound() -> None:
    series = make({5: NAN})
    series.append(5, NAN)
    assert list(series.gaps) == [5]
    series.append(4, 1.0)
    assert (list(series.gaps), list(series.steps)) == ([], [4])


@pytest.mark.parametrize("step", [NAN, math.inf, -math.inf])
def test_append_refuses_a_step_that_is_not_finite(step: float) -> None:
    series = make({1: 1.0})
    for act in (lambda: series.append(step, 1.0), lambda: series.extend([step], [1.0])):
        with pytest.raises(ValueError, match="loss: step"):
            act()
    assert (list(series.steps), series.version) == ([1], 1)


def test_rewinding_updates_the_pyramid() -> None:
    series = Series("loss")
    series.extend(range(5000), [1.0] * 4000 + [50.0] * 1000)
    assert series.columns(0, 5000, 1) == [(1, 50)]
    series.append(3990, -2.0)
    series.extend(range(3991, 5000), [3.0] * 1009)
    assert series.columns(0, 5000, 1) == [(-2, 3)]
    assert series.columns(4000, 5000, 2) == [(3, 3), (3, 3)]


def test_extend_takes_gaps_alone_and_points_after_them() -> None:
    series = make({1: 1.0})
    series.extend([2, 3], [None, NAN])
    series.extend([4, 5, 6], [4.0, math.inf, 6.0])
    series.extend([6, 7], [None, 7.0])
    assert (list(series.steps), list(series.values)) == ([1, 4, 7], [1, 4, 7])
    assert (list(series.gaps), series.span) == ([2, 3, 5, 6], (1, 7))


def test_extend_equals_many_appends() -> None:
    series, other = Series("a"), Series("b")
    steps, values = [1, 2, 3, 2, 5], [1.0, None, 3.0, 4.0, NAN]
    series.extend(steps, values)
    for step, value in zip(steps, values, strict=True):
        other.append(step, value)
    assert (series.steps, series.values, series.gaps) == (other.steps, other.values, other.gaps)
    series.extend([], [])
    with pytest.raises(ValueError, match="2 steps for 1 values"):
        series.extend([7, 8], [1.0])


def test_smoothed_matches_values_worked_by_hand() -> None:
    series = make({1: 2.0, 2: 4.0, 3: NAN, 4: 8.0})
    # a = 1, 2.5, 5.25; divided by 0.5, 0.75, 0.875
    assert list(series.smoothed(0.5).values) == pytest.approx([2.0, 10 / 3, 6.0])
    assert list(series.smoothed(0.5).steps) == [1, 2, 4]
    assert series.smoothed(0) is series


@pytest.mark.parametrize("weight", [-0.1, 1.0, NAN])
def test_smoothed_refuses_invalid_weights(weight: float) -> None:
    with pytest.raises(ValueError, match="smoothing weight"):
        Series("loss").smoothed(weight)


def test_smoothed_is_cached_and_brought_up_to_date() -> None:
    series = Series("loss")
    empty = series.smoothed(0.9)
    assert series.smoothed(0.9) is empty
    series.extend(range(40), [float(i % 7) for i in range(40)])
    kept = series.smoothed(0.9)
    before = kept.version
    assert (kept is empty, len(kept)) == (True, 40)
    assert series.smoothed(0.9).version == before
    series.append(40, 3.0)
    assert (series.smoothed(0.9) is kept, len(kept)) == (True, 41)
    assert kept.version > before


def test_rewinding_updates_the_smoothed_series_and_its_pyramid() -> None:
    series = Series("loss")
    series.extend(range(2000), [float(i % 13) for i in range(2000)])
    series.smoothed(0.97).columns(0, 2000, 10)
    series.append(1000, -500.0)
    fresh = Series("loss")
    fresh.extend(series.steps, series.values)
    assert list(series.smoothed(0.97).values) == pytest.approx(list(fresh.smoothed(0.97).values))
    assert series.smoothed(0.97).columns(990, 1000, 1)[0] == pytest.approx(
        fresh.smoothed(0.97).columns(990, 1000, 1)[0]
    )


def by_definition(values: list[float], weight: float) -> list[float]:
    average, shown = 0.0, []
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        shown.append(average / (1 - weight**count))
    return shown


FINITE = st.floats(-1e6, 1e6)
VALUE = st.one_of(FINITE, FINITE, FINITE, st.sampled_from([None, NAN, math.inf]))
OPERATION = st.one_of(
    st.tuples(st.just("append"), st.integers(-40, 400), VALUE),
    st.tuples(st.just("burst"), st.integers(1, 90), VALUE),
    st.tuples(st.just("look"), st.integers(0, 400), st.integers(1, 50)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(OPERATION, max_size=30), st.sampled_from([0.3, 0.6, 0.97]))
def test_columns_and_smoothing_equal_brute_force(operations: list[Any], weight: float) -> None:
    series = Series("loss")
    points: dict[float, float | None] = {}

    def put(step: float, value: float | None) -> None:
        for old in [old for old in points if old >= step]:
            del points[old]
        points[step] = value if value is not None and math.isfinite(value) else None

    for kind, number, value in [*operations, ("look", 0, 7)]:
        if kind == "append":
            series.append(number, value)
            put(number, value)
        elif kind == "burst":
            first = int(max(points, default=0)) + 1
            series.extend(range(first, first + number), [value] * number)
            for step in range(first, first + number):
                put(step, value)
        else:
            start, stop, count = float(number), float(number + 400), int(value)
            assert series.columns(start, stop, count) == expected_columns(points, start, stop, count)
            finite = [value for value in points.values() if value is not None]
            assert list(series.smoothed(weight).values) == pytest.approx(
                by_definition(finite, weight), rel=1e-6, abs=1e-6
            )
    assert list(series.gaps) == [step for step, value in points.items() if value is None]
    assert dict(zip(series.steps, series.values, strict=True)) == {k: v for k, v in points.items() if v is not None}


def expected_columns(points: dict[float, float | None], start: float, stop: float, count: int) -> list[Any]:
    edges = [start + (stop - start) * index / count for index in range(count)] + [stop]
    found: list[Any] = []
    for index in range(count):
        last = index == count - 1
        inside = [
            value
            for step, value in points.items()
            if value is not None and edges[index] <= step and (step < edges[index + 1] or (last and step <= stop))
        ]
        found.append((min(inside), max(inside)) if inside else None)
    return found
