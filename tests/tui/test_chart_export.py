"""Charts as files: what is in sight on the screen is in them."""

from stackllama_console.readers.series import Series
from stackllama_console.tui.chart_export import as_csv, as_svg
from stackllama_console.tui.widgets.chart_picture import Drawn
from stackllama_engine.contract.metrics import Unit

MIB = 2.0**20


def _series(*values: float) -> Series:
    series = Series("one")
    series.extend([float(step) for step in range(1, len(values) + 1)], list(values))
    return series


def _drawn(
    series: Series, *, weight: float = 0.0, log: bool = False, unit: Unit = "number", reference: float = 4.0
) -> Drawn:
    return Drawn(
        title="memory",
        x="step",
        window=(0.0, 4.0),
        low=0.5,
        high=1024 * MIB if unit == "bytes" else 8.0,
        log=log,
        weight=weight,
        curves=[("one", series)],
        x_ticks=[],
        value_ticks=[],
        unit=unit,
        reference=("predicted", reference),
    )


def test_the_reference_line_is_in_both_files() -> None:
    chart = _drawn(_series(2.0, 4.0), unit="bytes", reference=512 * MIB)
    assert as_csv([chart], "a-run").splitlines()[1:] == [
        "a-run,memory,one,step,1,2.0,",
        "a-run,memory,one,step,2,4.0,",
        "a-run,memory,predicted,step,,536870912.0,",
    ]
    svg = as_svg([chart], "a-run")
    assert ">predicted 512.0 MiB<" in svg and ">one 4 B<" in svg
    assert 'd="M70 170.0H620"' in svg  # halfway between 56 and 284


def test_a_single_point_is_seen() -> None:
    assert as_svg([_drawn(_series(2.0))], "a-run").count("<circle") == 1
    assert "<circle" not in as_svg([_drawn(_series(2.0, 3.0))], "a-run")


def test_the_legend_has_the_value_that_is_drawn() -> None:
    """TensorBoard's average of 1 and 3 with 0.6: (0.6 × 0.4 × 1 + 0.4 × 3) / (1 − 0.36) = 2.25."""
    assert ">one 2.25<" in as_svg([_drawn(_series(1.0, 3.0), weight=0.6)], "a-run")
    assert ">one 3<" in as_svg([_drawn(_series(1.0, 3.0))], "a-run")


def test_what_a_log_axis_cannot_show_is_said() -> None:
    assert "log, 0 and less at the bottom" in as_svg([_drawn(_series(0.0, 3.0), log=True)], "a-run")
    svg = as_svg([_drawn(_series(1.0, 3.0), log=True)], "a-run")
    assert ">log<" in svg
