"""A person's command at the end of a run: what it is told, that it ends, and that nothing of it touches the run."""

from pathlib import Path

import pytest

from stackllama_engine.contract import children
from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.on_end import VARIABLE, command_of, person_command, run_command
from stackllama_engine.launch.supervisor_log import SUPERVISOR_LOG

from .conftest import Runs, wait_for, wait_for_phase


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    file = tmp_path / "config" / "stackllama" / "settings.yaml"
    file.parent.mkdir(parents=True)
    return file


def log_of(run: RunDir) -> str:
    file = run.attempt_dir(1) / SUPERVISOR_LOG
    return file.read_text() if file.exists() else ""


@pytest.mark.parametrize(("mode", "said"), [("finish", "finished|0|"), ("fail", "failed|1|out of memory in train")])
def test_the_supervisor_runs_it_with_id_state_and_cause(runs: Runs, settings: Path, mode: str, said: str) -> None:
    told = '"$STACKLLAMA_RUN_ID|$STACKLLAMA_RUN_STATE|$STACKLLAMA_RUN_EXIT_CODE|$STACKLLAMA_RUN_CAUSE"'
    settings.write_text(f"on_end: 'echo {told}; exit 3'\n")
    run, state = runs.end(mode)
    wait_for(lambda: "on_end" in log_of(run))
    assert f"on_end ({state.phase}): exit code 3\n{run.id}|{said}" in log_of(run)
    assert run.read_state() == state and not run.lock_is_held()


def test_it_is_told_of_findings_which_the_state_keeps(runs: Runs, settings: Path) -> None:
    settings.write_text("on_end: 'echo \"$STACKLLAMA_RUN_STATE|$STACKLLAMA_RUN_CAUSE\"'\n")
    run, state = runs.end("find")
    assert state.phase == "finished" and list(state.findings) == ["no_end"]
    assert state.findings["no_end"].startswith("no_end, step 3: it is so. It is bad.")
    wait_for(lambda: log_of(run).count("on_end (") == 3)
    assert "on_end (finding): exit code 0\nfinding|kl_high, step 3" in log_of(run)
    assert "finding|no_end, step 3" in log_of(run) and "finished|" in log_of(run)


def test_the_attempts_own_command_goes_first(runs: Runs, settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.write_text("on_end: echo everybody\n")
    monkeypatch.setenv(VARIABLE, "echo mine $STACKLLAMA_RUN_PATH, ${STACKLLAMA_ON_END-none}")
    run = runs.start("until-stopped")
    wait_for_phase(run, "running")
    run.request("stop")
    wait_for(lambda: "on_end" in log_of(run))
    assert f"on_end (stopped): exit code 0\nmine {run.path}, none" in log_of(run)


def test_a_stage_leaves_its_end_to_the_pipeline_and_tells_of_a_stall_by_its_id(
    home: Home, runs: Runs, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.write_text("on_end: echo $STACKLLAMA_RUN_ID $STACKLLAMA_RUN_STAGE $STACKLLAMA_RUN_PATH\n")
    monkeypatch.setattr(children, "known_parents", lambda run: ["whole", "other"])
    pipeline, stage = runs.create("whole"), runs.create("whole-sft")
    folder = stage.attempt_dir(1)
    folder.mkdir()
    run_command(stage, folder, State(stage=Stage.SFT, phase="failed"))
    assert log_of(stage) == ""
    run_command(stage, folder, State(stage=Stage.SFT, phase="stalled"))
    assert f"on_end (stalled): exit code 0\nwhole sft {pipeline.path}\n" in log_of(stage)
    assert command_of(runs.create("mine"), State(stage=Stage.SFT, phase="failed")) is not None


def test_a_command_of_a_stall_outlives_the_attempt_and_keeps_its_exit_code(
    runs: Runs, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = "until [ -e $STACKLLAMA_RUN_PATH/go ]; do sleep 0.05; done; exit 3"
    settings.write_text(f"on_end: '[ $STACKLLAMA_RUN_STATE = stopped ] && exit 4; {waits}'\n")
    monkeypatch.setenv("STACKLLAMA_STALL_LOAD", "0.3")
    run = runs.start("until-stopped")
    wait_for_phase(run, "stalled")
    run.request("stop")
    wait_for(lambda: "on_end (stopped): exit code 4" in log_of(run))
    assert not run.lock_is_held() and "on_end (stalled)" not in log_of(run)
    (run.path / "go").touch()
    wait_for(lambda: "on_end (stalled): exit code 3" in log_of(run))


def test_a_command_that_ends_while_its_run_continues_keeps_its_exit_code(
    runs: Runs, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.write_text("on_end: 'sleep 0.3; exit 3'\n")  # longer than a poll
    monkeypatch.setenv("STACKLLAMA_STALL_LOAD", "0.3")
    run = runs.start("until-stopped")
    wait_for(lambda: "on_end (stalled): exit code 3" in log_of(run))
    run.request("stop")


def test_a_command_that_hangs_is_killed_and_its_output_kept(runs: Runs, settings: Path) -> None:
    run = runs.create()
    folder = run.attempt_dir(1)
    folder.mkdir()
    settings.write_text("on_end: 'echo before; sleep 600 & wait'\n")
    run_command(run, folder, run.read_state(), seconds=0.3)
    assert "killed after 0 s\nbefore" in log_of(run)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("on_end: [a]\n", "`on_end` must be a command"),
        ("on_ent: a\n", "unknown key `on_ent`"),
        ("- a\n", "expected `on_end: COMMAND`"),
        ("on_end: 'a\n", "is not YAML"),
    ],
)
def test_wrong_settings_are_one_sentence_that_names_the_file(settings: Path, text: str, said: str) -> None:
    settings.write_text(text)
    with pytest.raises(UsageError) as caught:
        person_command()
    assert said in str(caught.value) and str(settings) in str(caught.value)


def test_wrong_settings_at_the_end_are_a_line_of_the_log(runs: Runs, settings: Path) -> None:
    settings.write_text("on_end: [a]\n")
    run, state = runs.end("finish")
    wait_for(lambda: "on_end:" in log_of(run))
    assert state.phase == "finished" and "must be a command" in log_of(run)


def test_a_stall_runs_it_while_the_run_continues(runs: Runs, settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.write_text("on_end: echo $STACKLLAMA_RUN_STATE\n")
    monkeypatch.setenv("STACKLLAMA_STALL_LOAD", "0.3")
    run = runs.start("until-stopped")
    wait_for_phase(run, "stalled")
    wait_for(lambda: "on_end (stalled): exit code 0\nstalled" in log_of(run))
    assert run.lock_is_held()
    run.request("stop")
    wait_for(lambda: "on_end (stopped)" in log_of(run))


def test_without_a_command_nothing_is_run_or_logged(runs: Runs) -> None:
    run, _ = runs.end("finish")
    wait_for(lambda: not run.lock_is_held())
    assert log_of(run) == ""
