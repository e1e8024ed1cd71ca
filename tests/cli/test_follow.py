"""Following a scripted run directory: another thread plays the worker and the supervisor."""

import io
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from rich.console import Console

from stackllama_console.cli import follow as follow_module
from stackllama_console.cli.bars import Bars
from stackllama_console.cli.follow import Follower
from stackllama_console.cli.plain_lines import Lines, metrics_line
from stackllama_console.cli.tail import Tail
from stackllama_engine.contract.events import Event, EventWriter
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

MakeRun = Callable[..., RunDir]


def end(run: RunDir, phase: str, code: int | None, cause: str | None = None) -> None:
    state = run.read_state()
    run.write_state(msgspec.structs.replace(state, phase=phase, exit_code=code, cause=cause, ended=time.time()))


@pytest.mark.parametrize(
    ("phase", "code", "ends_with"),
    [
        ("finished", 0, 0),
        ("failed", 1, 1),
        ("failed", 2, 2),
        ("failed", 137, 137),
        ("stopped", 75, 75),
        ("stopped", 137, 137),
        ("lost", None, 1),
    ],
)
def test_watch_exits_with_the_runs_code(
    phase: str, code: int | None, ends_with: int, make_run: MakeRun, run_main: Callable[..., Any]
) -> None:
    make_run(Stage.SFT, "one", phase, exit_code=code, cause="because", last_lines=["the last line"])
    result = run_main("runs", "watch", "one", "--json")
    assert result.code == ends_with
    assert result.json()["state"] == phase
    assert phase in result.err
    assert ("because" in result.err) == (phase != "finished")
    assert ("the last line" in result.err) == (phase in ("failed", "lost"))


def test_lines_report_phases_metrics_and_notices(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    run = make_run(Stage.PPO, "one", "running")

    def play() -> None:
        events = EventWriter(run.attempt_dir(1) / "events.jsonl")
        for step in range(1, 4):
            for phase in ("rollout", "score", "update"):
                events.write("phase", phase=phase)
            events.write("progress", step=step, total_steps=3)
            metrics = {"objective/scores": 0.1 * step, "objective/kl": 1.25 * step, "time/rollout": 9.0}
            events.write("metrics", step=step, metrics=metrics)
            time.sleep(0.05)
        events.write("health", data={"message": "two prompts dropped"})
        events.write("checkpoint", step=3, data={"path": "checkpoints/step-000003"})
        events.write("metrics", step=3, metrics={"objective/scores": float("nan"), "objective/kl": 4.0})
        events.write("end", data={"exit_code": 0})
        end(run, "finished", 0)

    player = threading.Timer(0.3, play)
    player.start()
    result = run_main("runs", "watch", "one")
    player.join()
    lines = result.err.splitlines()
    assert result.code == 0 and result.out == ""
    assert lines[0] == "-- one"
    assert lines.count("ppo: rollout") == 1  # a phase that comes round each step is said once
    assert "ppo 1/3 objective/scores 0.1 objective/kl 1.25" in lines
    assert "ppo 3/3 objective/scores 0.3 objective/kl 3.75" in lines  # the newest one before a notice
    assert "ppo 2/3 objective/scores 0.2 objective/kl 2.5" not in lines  # between: within five seconds
    assert "ppo: two prompts dropped" in lines and "ppo: checkpoint at step 3" in lines
    assert "ppo 3/3 objective/scores nan objective/kl 4" in lines
    assert lines[-1].startswith("one: finished in ")


def test_lines_sum_up_earlier_events_in_one_line(
    make_run: MakeRun, write_events: Callable[..., None], run_main: Callable[..., Any]
) -> None:
    run = make_run(Stage.SFT, "one", "finished")
    write_events(run, *[("metrics", {"step": step, "metrics": {"loss": 9.0 - step}}) for step in range(1, 9)])
    lines = run_main("runs", "watch", "one").err.splitlines()
    assert lines[:2] == ["-- one", "sft 8 loss 1"]
    assert len(lines) == 3


def test_watch_counts_unreadable_event_lines(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    run = make_run(Stage.SFT, "one", "finished")
    (run.attempt_dir(1) / "events.jsonl").write_bytes(b"{not json\n\xff\xfe\x00\n" + b"x" * 2_000_000 + b"\n")
    result = run_main("runs", "watch", "one")
    assert result.code == 0
    assert "3 lines of its events could not be read" in result.err


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def begin(self, tail: Tail) -> None:
        self.seen.append(("begin", f"{tail.title} after {tail.history.step}"))

    def event(self, tail: Tail, event: Any) -> None:
        self.seen.append((tail.title, event.kind))

    def tick(self) -> None: ...

    def close(self) -> None: ...


def test_follower_shows_a_pipelines_children_in_turn(
    home: Home, make_run: MakeRun, write_events: Callable[..., None]
) -> None:
    pipe = make_run(Stage.PIPELINE, "p", "running")
    sft = make_run(Stage.SFT, "p-sft", "finished")
    write_events(sft, ("metrics", {"step": 5, "metrics": {"loss": 1.0}}), ("end", {"data": {"exit_code": 0}}))
    write_events(pipe, ("phase", {"phase": "p-sft"}), ("phase", {"phase": "p-sft-merged"}))
    recorder = Recorder()
    follower = Follower(home, pipe, recorder)
    follower.poll()
    assert recorder.seen == [("begin", "sft after 5")]  # the merge was announced but is not there yet
    merged = make_run(Stage.MERGE, "p-sft-merged", "running")
    follower.poll()
    assert recorder.seen[1:] == [("begin", "sft merge after 0")]
    write_events(merged, ("metrics", {"step": 1, "metrics": {"difference": 0.0}}))
    follower.poll()
    write_events(merged, ("end", {"data": {"exit_code": 0}}))
    write_events(pipe, ("phase", {"phase": "p-reward"}))
    make_run(Stage.REWARD, "p-reward", "running")
    follower.poll()
    assert recorder.seen[2:] == [("sft merge", "metrics"), ("sft merge", "end"), ("begin", "reward after 0")]
    end(pipe, "failed", 1)
    assert follower.poll().has_ended


def test_follower_reads_a_second_attempt(home: Home, make_run: MakeRun, write_events: Callable[..., None]) -> None:
    run = make_run(Stage.SFT, "one", "running")
    write_events(run, ("metrics", {"step": 5, "metrics": {"loss": 1.0}}), ("end", {"data": {"exit_code": 75}}))
    recorder = Recorder()
    follower = Follower(home, run, recorder)
    run.attempt_dir(2).mkdir()
    write_events(run, ("metrics", {"step": 6, "metrics": {"loss": 0.5}}), attempt=2)
    follower.poll()
    assert recorder.seen == [("begin", "sft after 5"), ("sft", "metrics")]


def bars(columns: int = 80) -> tuple[Bars, io.StringIO]:
    stream = io.StringIO()
    return Bars(Console(file=stream, force_terminal=True, width=columns, height=24, highlight=False)), stream


def test_bars_fit_80_columns(home: Home, make_run: MakeRun, write_events: Callable[..., None]) -> None:
    run = make_run(Stage.PPO, "one", "running")
    display, stream = bars()
    follower = Follower(home, run, display)
    write_events(
        run,
        ("progress", {"step": 12, "total_steps": 60}),
        ("metrics", {"step": 12, "metrics": {"objective/scores": 0.4142, "objective/kl": 1.2}}),
        ("health", {"data": {"message": "two prompts dropped"}}),
    )
    EventWriter(run.attempt_dir(1) / "health.jsonl").write("health", data={"message": "Run stalled: no event."})
    follower.poll()
    display.close()
    text = Console(file=io.StringIO()).render_str(stream.getvalue(), markup=False).plain
    assert "12/60" in text and "scores 0.4142 kl 1.2" in text
    assert "ppo: two prompts dropped" in text and "ppo: Run stalled: no event." in text


def test_bars_print_markup_as_text(
    home: Home, make_run: MakeRun, write_events: Callable[..., None], payloads: list[str]
) -> None:
    run = make_run(Stage.SFT, "one", "running")
    display, stream = bars()
    follower = Follower(home, run, display)
    for payload in payloads:
        write_events(
            run,
            ("phase", {"phase": payload}),
            ("health", {"data": {"message": payload}}),
        )
        follower.poll()
    write_events(run, ("metrics", {"step": 1, "metrics": dict.fromkeys(payloads, 1.0)}))
    follower.poll()
    display.close()
    shown = stream.getvalue()
    assert "[@click=app.quit]markup[/]" in shown and "[bold red]not red[/bold red]" in shown
    for sequence in ("\x1b]", "\x1bP", "\x1bc", "\x9b", "\x9d", "\x90", "\u202e", "\u2066", "\x07", "\x00"):
        assert sequence not in shown


def test_lines_are_sanitised(
    make_run: MakeRun,
    write_events: Callable[..., None],
    payloads: list[str],
    capsys: pytest.CaptureFixture[str],
    assert_clean: Callable[[str], None],
) -> None:
    run = make_run(Stage.SFT, "one", "running")
    tail, display = Tail(run, "one", Stage.SFT), Lines()
    display.begin(tail)
    for payload in payloads:
        write_events(
            run,
            ("phase", {"phase": payload}),
            ("health", {"data": {"message": payload}}),
            ("metrics", {"step": 1, "metrics": {payload: 1.0}}),
        )
    for event in tail.read():
        display.event(tail, event)
    display.close()
    assert_clean(capsys.readouterr().err)


def test_metrics_line_of_unknown_metrics_has_the_first_ones(make_run: MakeRun) -> None:
    tail = Tail(make_run(Stage.SFT, "one", "running"), "sft", Stage.SFT)
    assert metrics_line(tail, {"zeta": 1.0, "alpha": 2.5}, 3) == "sft 3 zeta 1 alpha 2.5"


def test_lines_continue_after_the_clock_was_set_back(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(Stage.SFT, "one", "running")
    tail, display = Tail(run, "one", Stage.SFT), Lines()
    display.begin(tail)
    for step, moment in enumerate((7200.0, 3601.0, 3607.0), start=1):
        display.event(tail, Event(seq=step, time=moment, kind="metrics", step=step, metrics={"loss": float(step)}))
    said = capsys.readouterr().err
    assert all(f"one {step} loss" in said for step in (1, 2, 3)), said


@pytest.mark.parametrize(
    ("is_terminal", "term", "expected"), [(True, "xterm", Bars), (True, "dumb", Lines), (False, "xterm", Lines)]
)
def test_choose_display_returns_bars_only_on_a_terminal(
    is_terminal: bool, term: str, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", term)
    display = follow_module.choose_display(plain=False)
    display.close()
    assert isinstance(display, expected)
    assert isinstance(follow_module.choose_display(plain=True), Lines)


def test_follower_shows_each_child_of_a_resumed_pipeline_once(
    home: Home, make_run: MakeRun, write_events: Callable[..., None]
) -> None:
    pipe = make_run(Stage.PIPELINE, "p", "running")
    make_run(Stage.SFT, "p-sft")
    make_run(Stage.MERGE, "p-sft-merged")
    reward = make_run(Stage.REWARD, "p-reward", "running")
    announced = [("phase", {"phase": f"p-{suffix}"}) for suffix in ("sft", "sft-merged", "reward")]
    write_events(pipe, *announced)
    recorder = Recorder()
    follower = Follower(home, pipe, recorder)
    follower.poll()
    pipe.attempt_dir(2).mkdir()
    write_events(pipe, *announced, attempt=2)
    reward.attempt_dir(2).mkdir()
    write_events(reward, ("metrics", {"step": 6, "metrics": {"loss": 0.5}}), attempt=2)
    follower.poll()
    begun = ["sft after 0", "sft merge after 0", "reward after 0"]
    assert recorder.seen == [*(("begin", title) for title in begun), ("reward", "metrics")]
