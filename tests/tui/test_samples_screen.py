"""The rollout browser under keys: sorting, filtering, one prompt, before and after, live rows, hostile text."""

from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import PAYLOADS
from tests.tui.screens_kit import Driven, add_samples, drive, isolate, make_run

from stackllama_console.readers.samples import Sample
from stackllama_console.tui.app import ConsoleApp
from stackllama_console.tui.screens.samples import SamplesScreen
from stackllama_console.tui.widgets.row_list import RowList
from stackllama_console.tui.widgets.sample_rows import facts
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage


def _row(step: int, question: str = "why?", **fields: Any) -> dict[str, Any]:
    made = {
        "response": f"answer {step}",
        "reward": float(step % 7),
        "kl": step / 10,
        "length": abs(100 - step),
        "ended": True,
    }
    return {"step": step, "question": question, **made, **fields}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Make a run of forty steps of one row each, every fourth of the same question."""
    run = make_run(isolate(tmp_path, monkeypatch), Stage.PPO, "trained")
    add_samples(run, *(_row(step, "how?" if step % 4 == 0 else f"what {step}?") for step in range(1, 41)))
    return run


def _browse(run: RunDir) -> Any:
    return lambda: SamplesScreen(run)


def _home(run: RunDir) -> Home:
    return Home(run.path.parents[1])


def _steps(driven: Driven) -> list[int]:
    """Return the steps of the rows in sight."""
    rows = [line for line in driven.lines if "→" in line and "prompt" not in line]
    return [int(line.split()[0]) for line in rows]


def test_newest_first_with_the_selected_one_in_full_below(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("answer 40")
        assert "40 samples by step ↓" in driven.lines[0]
        assert _steps(driven)[:3] == [40, 39, 38]
        assert driven.lines[2].split()[:5] == ["40", "5.000", "4.000", "60", "✓"]
        assert "step 40 · reward 5.000 · KL 4.000 · 60 tokens · ended" in driven.text
        await driven.press("j")
        await driven.shows("step 39 · reward 4.000")

    drive(_home(run), _browse(run), script)


def test_o_cycles_the_key_and_r_reverses(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("answer 40")
        for key, sign, first in (("o", "by reward ↓", 6), ("r", "by reward ↑", 7), ("o", "by KL ↓", 40)):
            await driven.press(key)
            await driven.until(lambda sign=sign: sign in driven.lines[0])
            await driven.until(lambda first=first: _steps(driven)[0] == first)
        await driven.press("o")
        await driven.until(lambda: "by length ↓" in driven.lines[0] and _steps(driven)[0] == 1)
        await driven.press("o")
        await driven.until(lambda: "by step ↓" in driven.lines[0] and _steps(driven)[0] == 40)

    drive(_home(run), _browse(run), script)


def test_moving_by_row_page_and_end(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("answer 40")
        for key, step in (("j", 39), ("k", 40), ("k", 40), ("G", 1), ("g", 40), ("down", 39), ("up", 40)):
            await driven.press(key)
            await driven.shows(f"step {step} · ")
        await driven.press("ctrl+d")
        cursor = driven.screen.query_one(RowList).cursor
        assert cursor > 5
        await driven.press("ctrl+u")
        assert driven.screen.query_one(RowList).cursor == 0

    drive(_home(run), _browse(run), script)


def test_slash_filters_and_escape_leaves_step_by_step(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("answer 40")
        await driven.press("slash")
        await driven.type("ANSWER 3")
        await driven.press("enter")
        await driven.shows("11 of 40 with “ANSWER 3” by step ↓")
        await driven.until(lambda: _steps(driven) == [39, 38, 37, 36, 35, 34, 33, 32, 31, 30, 3])
        await driven.press("o")
        await driven.until(lambda: _steps(driven)[:2] == [34, 33])  # by reward
        await driven.press("slash", "escape")
        assert driven.screen.query_one(RowList).has_focus and "11 of 40" in driven.lines[0]
        await driven.press("escape")
        await driven.shows("40 samples by reward")
        await driven.press("escape")
        assert driven.app.screen is not driven.screen

    drive(_home(run), _browse(run), script)


def test_a_filter_without_rows_says_so(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("answer 40")
        await driven.press("slash")
        await driven.type("[/] nowhere")
        await driven.press("enter")
        await driven.shows("No sample holds “[/] nowhere”.")
        await driven.press("slash")
        await driven.type("")
        await driven.press("enter")
        await driven.shows("answer 40")
        assert "KL" in driven.lines[1] and "length end" in driven.lines[1]  # the titles are still all there

    drive(_home(run), _browse(run), script)


def test_f_follows_one_prompt_by_step_with_deltas_and_back(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("answer 40")
        await driven.press("f")
        await driven.shows("one prompt, 10 responses by step", "answer 4")
        rows = [line.split() for line in driven.lines if "answer" in line and line.split()[0].isdigit()]
        assert [row[0] for row in rows][-1] == "40"
        assert driven.screen.query_one(RowList).cursor == 9  # still the same answer
        await driven.press("g")
        await driven.shows("step 4 · ")
        rows = [line.split() for line in driven.lines if "answer" in line and line.split()[0].isdigit()]
        assert rows[0][:2] == ["4", "4.000"] and "▲" not in rows[0][2]
        assert rows[1][:3] == ["8", "1.000", "▼-3.00"] and rows[2][:3] == ["12", "5.000", "▲+4.00"]
        await driven.press("f")
        await driven.shows("40 samples by step")
        await driven.shows("step 4 · ")
        await driven.press("f")
        await driven.shows("one prompt")
        await driven.press("escape")
        await driven.shows("40 samples by step")

    drive(_home(run), _browse(run), script)


def test_b_shows_before_and_after_from_the_file(run: RunDir) -> None:
    held_out = {"split": "evaluation", "kl": 0.0, "length": 3}
    add_samples(
        run,
        {
            "step": 0,
            "question": "new?",
            "response": "no",
            "reward": -1.0,
            "utility": 0.25,
            "when": "before",
            **held_out,
        },
        {"step": 40, "question": "new?", "response": "yes", "reward": 1.5, "utility": 0.5, "when": "after", **held_out},
    )

    async def script(driven: Driven) -> None:
        await driven.shows("answer 40")
        await driven.press("b")
        await driven.shows("1 prompt before and after PPO", "▲+2.50", "0.25 → 0.50", "new?")
        assert "PPO  T = 1, 1 sample per prompt" in driven.lines[0]
        await driven.shows("before PPO", "reward -1.000 · true utility 0.250", "after PPO")
        side = next(line for line in driven.lines if "before PPO" in line)
        assert "after PPO" in side  # beside each other
        answers = next(line for line in driven.lines if line.strip().startswith("no "))
        assert answers.rstrip().endswith("yes")
        await driven.press("f")
        assert "sampled only before and after PPO" in driven.notices and "Select" not in driven.notices
        await driven.press("b")
        await driven.shows("42 samples by step")

    drive(_home(run), _browse(run), script)


def test_b_falls_back_to_the_results_samples(run: RunDir) -> None:
    side = {"question": "q?", "before": "old", "after": "new", "reward_before": 1.0, "reward_after": 0.5}
    run.write_json("result.json", {"samples": [side]})

    async def script(driven: Driven) -> None:
        await driven.shows("answer 40")
        await driven.press("b")
        await driven.shows("▼-0.50", "old", "new", "reward 0.500")
        await driven.press("escape")
        await driven.shows("40 samples by step")

    drive(_home(run), _browse(run), script)


def test_new_rows_arrive_without_moving_the_selection(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("answer 40")
        await driven.press("j", "j", "j")
        await driven.shows("step 37 · ")
        rows = driven.screen.query_one(RowList)
        line = rows.cursor - rows.scroll_offset.y
        add_samples(run, *(_row(step) for step in range(41, 51)))
        await driven.shows("50 samples")
        assert rows.cursor == 13 and rows.cursor - rows.scroll_offset.y == line
        assert "step 37 · " in driven.text
        await driven.press("g")
        await driven.shows("step 50 · ")

    drive(_home(run), _browse(run), script)


def test_a_rewritten_file_is_read_anew(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("answer 40")
        fresh = run.samples_file.with_suffix(".new")
        fresh.write_bytes(b"".join(run.samples_file.read_bytes().splitlines(keepends=True)[:20]))
        fresh.replace(run.samples_file)
        await driven.shows("20 samples", "answer 20", "step 20 · ")

    drive(_home(run), _browse(run), script)


def test_long_texts_are_scrolled_and_copied(run: RunDir, tmp_path: Path) -> None:
    add_samples(run, _row(41, response="\n".join(f"line {number}" for number in range(40))))

    async def script(driven: Driven) -> None:
        await driven.shows("line 0")
        await driven.press(*["d"] * 12)
        await driven.shows("line 39")
        await driven.press(*["u"] * 12)
        await driven.shows("step 41 · ")
        await driven.press("Y")
        await driven.until(lambda: (tmp_path / "state/stackllama/copied.txt").is_file())
        assert "line 39" in (tmp_path / "state/stackllama/copied.txt").read_text()

    drive(_home(run), _browse(run), script)


def test_from_120_columns_the_text_is_beside_the_list(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("step 40 · ")
        assert "step 40 · " in driven.lines[1] and "prompt → response" in driven.lines[1]

    drive(_home(run), _browse(run), script, (140, 40))


@pytest.mark.parametrize(
    ("stage", "phase", "said"),
    [
        (Stage.SFT, "finished", "An SFT run has no samples"),
        (Stage.REWARD, "finished", "A reward run has no samples"),
        (Stage.MERGE, "finished", "A merge has no samples"),
        (Stage.PIPELINE, "finished", "No stage of this pipeline has samples yet"),
        (Stage.PPO, "failed", "num_sample_generations: 0"),
    ],
)
def test_empty_list_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage, phase: str, said: str
) -> None:
    home = isolate(tmp_path, monkeypatch)
    run = make_run(home, stage, "empty", phase=phase)

    async def script(driven: Driven) -> None:
        await driven.shows(said)
        for key in ("o", "r", "f", "b", "d", "u", "Y", "G", "j"):
            await driven.press(key)
        driven.assert_clean()

    drive(home, _browse(run), script)


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.MERGE])
def test_keys_that_the_empty_list_names_lead_to_the_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    home = isolate(tmp_path, monkeypatch)
    run = make_run(home, stage, "empty")
    chats: list[str] = []
    monkeypatch.setattr(ConsoleApp, "open_chat", lambda app, run: chats.append(run.id))

    async def script(driven: Driven) -> None:
        await driven.until(lambda: "(esc, then t)" in " ".join(driven.text.split()))
        await driven.press("escape")
        await driven.until(lambda: getattr(driven.app.screen, "row", None) is not None)
        await driven.press("t")
        assert chats == ["empty"]

    drive(home, _browse(run), script)


def test_a_million_rows_are_read_only_where_they_are_seen(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    add_samples(run, *(_row(step) for step in range(41, 3_001)))
    read: list[int] = []

    async def script(driven: Driven) -> None:
        original = driven.screen.browser.read
        monkeypatch.setattr(driven.screen.browser, "read", lambda rows: (read.extend(rows), original(rows))[1])
        await driven.shows("answer 3000")
        await driven.press("G")
        await driven.shows("answer 1 ")
        assert len(read) < 300

    drive(_home(run), _browse(run), script)


@pytest.mark.parametrize(
    "size", [(80, 24), pytest.param((160, 45), marks=pytest.mark.slow), pytest.param((20, 5), marks=pytest.mark.slow)]
)
def test_hostile_text_is_plain_and_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    home = isolate(tmp_path, monkeypatch)
    run = make_run(home, Stage.PPO, "hostile", phase="failed")
    for step, payload in enumerate(PAYLOADS, start=1):
        add_samples(
            run, _row(step, f"{payload} q\n\tx", response=f"{payload}\r\n{payload}", when=payload, split=payload)
        )
        add_samples(run, _row(step, payload, when="before"), _row(step, payload, response=payload, when="after"))

    async def script(driven: Driven) -> None:
        await driven.until(lambda: len(driven.screen.listing))
        for key in ("r", *["j"] * len(PAYLOADS), "f", "escape", "b", *["j"] * len(PAYLOADS), "b", "Y"):
            await driven.press(key)
            driven.assert_clean()
        assert driven.app.screen is driven.screen

    drive(home, _browse(run), script, size)


def test_resizing_to_nothing_and_back_survives(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("answer 40")
        for size in ((20, 5), (1, 1), (160, 45), (80, 24)):
            await driven.pilot.resize_terminal(*size)
            await driven.press("j", "b", "b", "f", "f")
            driven.assert_clean()
        await driven.shows("samples by step")

    drive(_home(run), _browse(run), script)


def test_reward_components_are_shown_apart() -> None:
    one = Sample(question="q", response="r", reward=0.25, rewards={"model": 0.25})
    assert "reward 0.250 ·" in f"{facts(one).plain} ·" and "model" not in facts(one).plain
    two = Sample(question="q", response="r", reward=0.25, rewards={"model": 0.5, "length_penalty": -0.25})
    assert "reward 0.250 (model 0.500, length penalty -0.250)" in facts(two).plain
