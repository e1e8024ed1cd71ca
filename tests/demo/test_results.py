"""The demo's results in README and docs/results.md match the recording, which matches today's demo."""

import json

import pytest
from scripts import demo_results


@pytest.fixture(scope="module")
def recording() -> dict[str, object]:
    return json.loads(demo_results.RECORDING.read_text(encoding="utf-8"))


def test_the_recording_is_of_todays_demo(recording: dict[str, object]) -> None:
    message = "the demo's data, base or recipe changed: record it again (scripts/demo_results.py record)"
    assert recording["fingerprint"] == demo_results.fingerprint(), message


def test_the_documents_say_what_was_recorded(recording: dict[str, object]) -> None:
    parts = demo_results.blocks(recording)
    texts = {path: path.read_text(encoding="utf-8") for path in demo_results.documents()}
    for name in parts:
        assert any(demo_results.MARKS[0].format(name) in text for text in texts.values()), name
    for path, text in texts.items():
        assert demo_results.written(text, parts) == text, f"{path}: python scripts/demo_results.py write"


def test_a_mean_over_seeds_holds_both_spreads() -> None:
    rows = ({"name": "x", "kl": 1.0, "kl_se": 0.3}, {"name": "x", "kl": 3.0, "kl_se": 0.5})
    mean, error = demo_results._over_seeds(rows, "kl") or (0, 0)
    assert mean == 2.0 and error == pytest.approx(((2.0 + 0.17) / 2) ** 0.5)  # variance 2 between, mean of squares .17
