import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_console.cli import listing, output
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.run_dir import Home, Launch, RunDir
from stackllama_engine.contract.stages import Stage

MakeRun = Callable[..., RunDir]


def test_ls_of_an_empty_home_suggests_demo(run_main: Callable[..., Any], home: Home) -> None:
    result = run_main("runs", "ls")
    assert (result.code, result.out) == (0, "")
    assert "No runs under" in result.err
    assert run_main("runs", "ls", "--json").json() == {
        "home": str(home.path),
        "runs": [],
        "damaged": [],
        "leftovers": [],
    }
    assert not home.path.exists()


def test_ls_lists_runs_as_table_and_json(
    make_run: MakeRun, write_events: Callable[..., None], run_main: Callable[..., Any]
) -> None:
    now = time.time()
    sft = make_run(Stage.SFT, "a-sft", created=now - 3 * 86400)
    reward = make_run(Stage.REWARD, "b-reward", "running", created=now - 7200)
    ppo = make_run(Stage.PPO, "c-ppo", "failed", created=now - 30)
    make_run(Stage.MERGE, "d-merge", "stopped", created=now - 5)
    write_events(sft, ("metrics", {"step": 60, "metrics": {"loss": 0.4123, "grad_norm": 1.0}}))
    write_events(
        reward,
        ("metrics", {"step": 7, "metrics": {"loss": 0.6, "accuracy": 0.871}}),
        ("progress", {"step": 8, "total_steps": 40}),
    )
    write_events(ppo, ("metrics", {"step": 2, "metrics": {"objective/scores": -1.5}}))
    rows = [line.split() for line in run_main("runs", "ls").out.splitlines()]
    assert rows == [
        ["RUN", "STAGE", "STATE", "STEP", "AGE", "LAST", "METRIC"],
        ["a-sft", "sft", "finished", "60", "3d", "loss", "0.4123"],
        ["b-reward", "reward", "running", "8/40", "2h", "accuracy", "0.871"],
        ["c-ppo", "ppo", "failed", "2", "30s", "reward", "-1.5"],
        ["d-merge", "merge", "stopped", "5s"],
    ]
    document = run_main("runs", "ls", "--json", "--stage", "reward").json()
    (only,) = document["runs"]
    assert only["run"] == "b-reward" and only["last_metric"] == {"name": "accuracy", "value": 0.871}
    assert (only["step"], only["total_steps"], only["state"]) == (8, 40, "running")


def test_ls_prefers_the_metric_of_the_result(
    make_run: MakeRun, write_events: Callable[..., None], run_main: Callable[..., Any]
) -> None:
    reward = make_run(Stage.REWARD, "r")
    write_events(reward, ("metrics", {"step": 7, "metrics": {"accuracy": 0.99}}))  # of the batch
    reward.write_json("result.json", {"stage": "reward", "accuracy": 0.81})  # held out
    make_run(Stage.MERGE, "s").write_json("result.json", {"stage": "merge", "difference": 0.25})
    lines = run_main("runs", "ls").out.splitlines()
    assert lines[1].endswith("accuracy 0.81") and lines[2].endswith("error 0.25")


def test_ls_shortens_ids_in_a_narrow_terminal(
    make_run: MakeRun, run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = "pipeline-20260101-120000-abcd"
    for index, (stage, name) in enumerate(
        [
            (Stage.PIPELINE, pipeline),
            (Stage.SFT, f"{pipeline}-sft"),
            (Stage.MERGE, f"{pipeline}-sft-merged"),
            (Stage.SFT, "other"),
        ]
    ):
        make_run(stage, name, created=1000.0 + index)
    assert f"{pipeline}-sft-merged  merge" in run_main("runs", "ls").out  # nothing is cut in a file
    monkeypatch.setattr(listing, "width", lambda _: 80)
    names = [line.split("  ")[0] or line.split()[0] for line in run_main("runs", "ls").out.splitlines()[1:]]
    assert names == [pipeline, "…-sft", "…-sft-merged", "other"]


def test_ls_names_the_active_child_of_a_pipeline(
    make_run: MakeRun, write_events: Callable[..., None], run_main: Callable[..., Any]
) -> None:
    run = make_run(Stage.PIPELINE, "p", "stopped")
    write_events(run, ("phase", {"phase": "p-reward"}), ("progress", {"step": 2, "total_steps": 6}))
    assert run_main("runs", "ls").out.splitlines()[1].split()[3:] == ["2/6", "1m", "at", "reward"]


def test_default_run_is_the_pipeline_not_its_child(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    make_run(Stage.SFT, "a", created=1.0)
    make_run(Stage.PIPELINE, "p", created=2.0)
    make_run(Stage.SFT, "p-sft", created=3.0)
    assert run_main("runs", "show", "--json").json()["run"] == "p"


def test_ls_reconciles_states(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    run = make_run(Stage.SFT, "one", "finished")
    run.write_state(msgspec.structs.replace(run.read_state(), phase="running", ended=None, exit_code=None))
    assert "lost" in run_main("runs", "ls").out  # nobody holds its lock
    assert run.read_state().phase == "lost"


def test_ls_lists_others_beside_a_damaged_run(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    make_run(Stage.SFT, "good")
    (make_run(Stage.SFT, "bad").path / "state.json").write_text("{")
    result = run_main("runs", "ls")
    assert result.code == 0 and "good" in result.out
    assert ["bad", "sft", "damaged", "0s"] in [line.split() for line in result.out.splitlines()]
    assert "damaged: bad: " in result.err and "state.json cannot be read" in result.err
    assert "runs repair bad" in result.err and "runs rm bad" in result.err
    document = run_main("runs", "ls", "--json").json()
    assert len(document["damaged"]) == 1
    assert {run["run"]: run["state"] for run in document["runs"]} == {"good": "finished", "bad": "damaged"}


def _bytes_read() -> int:
    """Return the bytes that this process has read so far (proc(5), `rchar`)."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_ls_reads_only_the_end_of_a_long_run(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    run = make_run(Stage.SFT, "long")
    path = run.attempt_dir(1) / "events.jsonl"
    line = b'{"seq":1,"time":1.0,"kind":"metrics","step":1,"metrics":{"loss":9.0}}\n'
    path.write_bytes(line * 500_000)  # 35 MB
    events = path.open("ab")
    events.write(b'{"seq":2,"time":2.0,"kind":"metrics","step":500,"metrics":{"loss":0.25}}\n')
    events.close()
    before = _bytes_read()
    assert "loss 0.25" in run_main("runs", "ls").out
    assert _bytes_read() - before < 4_000_000


def test_show_prints_sections_and_json(
    make_run: MakeRun, write_events: Callable[..., None], run_main: Callable[..., Any]
) -> None:
    run = make_run(
        Stage.SFT, "one", "failed", cause="out of memory in train", overrides=["learning_rate=3e-4", "seed=7"]
    )
    write_events(
        run,
        ("metrics", {"step": 1, "metrics": {"loss": 4.0, "grad_norm": 9.0}}),
        ("metrics", {"step": 2, "metrics": {"loss": 2.0, "grad_norm": float("inf")}}),
        ("health", {"data": {"message": "3 pairs dropped"}}),
    )
    EventWriter(run.attempt_dir(1) / "health.jsonl").write("health", data={"message": "Disk space is low"})
    (run.checkpoints / "step-000002").mkdir()
    (run.checkpoints / ".tmp-step-000003").mkdir()
    (run.attempt_dir(1) / "log.txt").write_text("10%\r20%\rlast line\n")
    text = run_main("runs", "show", "one").out
    assert "out of memory in train" in text and "learning_rate: 0.0003" in text and "seed: 7" in text
    assert "weight_decay" not in text  # a default
    assert "4 → 2" in text and "9 → nan" in text and "3 pairs dropped" in text and "Disk space is low" in text
    assert "  last line\n" in text and "10%" not in text
    assert "stackllama-console runs resume one --follow" in text
    document = run_main("runs", "show", "one", "--json").json()
    assert document["checkpoints"] == [2]
    assert document["recipe_differences"] == {
        "model_name_or_path": "demo",
        "dataset_name": "demo",
        "learning_rate": 3e-4,
        "seed": 7,
    }
    assert document["first"]["loss"] == 4.0 and document["last"] == {"loss": 2.0, "grad_norm": None}
    assert (document["state"], document["cause"], document["exit_code"]) == ("failed", "out of memory in train", 1)


def test_show_names_the_slurm_job(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    run = make_run(Stage.SFT, "one", "queued")
    assert "Slurm" not in run_main("runs", "show", "one").out
    assert run_main("runs", "show", "one", "--json").json()["slurm_job"] is None
    run.write_json("slurm.json", {"id": "4242", "submitted": 1.0})
    assert "Slurm job    4242" in run_main("runs", "show", "one").out
    assert run_main("runs", "show", "one", "--json").json()["slurm_job"] == "4242"
    finished = make_run(Stage.SFT, "two", "finished")
    finished.write_json("slurm.json", {"id": 5})
    assert "slurm.json cannot be read" in run_main("runs", "show", "two").out


def test_show_of_the_newest_run_has_its_recipe_or_why_it_is_unreadable(
    make_run: MakeRun, run_main: Callable[..., Any]
) -> None:
    assert run_main("runs", "show").code == 2
    make_run(Stage.SFT, "old", created=1.0)
    new = make_run(Stage.PIPELINE, "new", overrides=["ppo.learning_rate=4e-5"])
    document = run_main("runs", "show", "--json").json()
    assert document["run"] == "new"
    assert document["recipe_differences"]["ppo.learning_rate"] == 4e-5
    assert document["recipe_differences"]["sft.model_name_or_path"] == "demo"
    new.recipe_file.write_text("nokey: 1\n")
    result = run_main("runs", "show")
    assert result.code == 0 and "cannot be read" in result.out and "has no key `nokey`" in result.out


def test_wrong_run_id_suggests_the_nearest(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    make_run(Stage.SFT, "sft-20260101-120000-abcd")
    result = run_main("runs", "show", "sft-20260101-120000-abce")
    assert result.code == 2
    assert "Did you mean `sft-20260101-120000-abcd`?" in result.err


def test_logs_prints_last_lines_and_follows(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    run = make_run(Stage.SFT, "one")
    assert "printed nothing" in run_main("runs", "logs").err
    log = run.attempt_dir(1) / "log.txt"
    log.write_bytes(b"".join(b"line %d\n" % index for index in range(200_000)) + b"truncated \xff")
    lines = run_main("runs", "logs", "one", "-n", "3").out.splitlines()
    assert lines == ["line 199998", "line 199999", "truncated \ufffd"]
    assert len(run_main("runs", "logs", "one").out.splitlines()) == 100
    assert run_main("runs", "logs", "one", "-f", "-n", "2").out.splitlines() == lines[1:]
    log.write_bytes(b"x" * 20_000_000)  # one endless line: the last megabytes of it, at once
    assert len(run_main("runs", "logs", "one").out) < 10_000_000
    result = run_main("runs", "logs", "one", "--attempt", "2")
    assert result.code == 2 and "there are: 1" in result.err


def child_of(pipeline: str, child: RunDir) -> RunDir:
    child.write_launch(Launch(argv=[], cwd="/", host="here", created=1.0, parents=[pipeline]))
    return child


def test_logs_of_a_pipeline_names_its_stages_log(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    make_run(Stage.PIPELINE, "p", "failed")
    child_of("p", make_run(Stage.SFT, "p-sft"))
    child_of("p", make_run(Stage.MERGE, "p-sft-merged", "failed"))
    said = run_main("runs", "logs", "p").err
    assert said.splitlines()[0] == "p has printed nothing."
    assert "stackllama-console runs logs p-sft-merged" in said
    assert "next: stackllama-console runs logs p-sft-merged" in run_main("runs", "watch", "p").err
    make_run(Stage.SFT, "one", "running")
    assert run_main("runs", "logs", "one").err == "one has printed nothing yet.\n"


def test_stage_that_outlived_its_pipeline_is_named_and_stopped(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    make_run(Stage.PIPELINE, "p", "lost")
    child = child_of("p", make_run(Stage.SFT, "p-sft", "running"))
    assert "its stage `p-sft` is still running" in run_main("runs", "watch", "p").err
    assert "still running  its stage `p-sft`" in run_main("runs", "show", "p").out
    result = run_main("runs", "stop", "p", "--no-wait")
    assert result.code == 0 and "its stage `p-sft` was still running and was asked to save and stop" in result.err
    assert (child.control / "stop").exists()
    child.write_state(msgspec.structs.replace(child.read_state(), phase="stopped", exit_code=75, ended=time.time()))
    result = run_main("runs", "stop", "p")
    assert result.code == 1 and "has already ended" in result.err


def test_failed_recipe_suggests_relaunch_instead_of_resume(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    make_run(Stage.SFT, "one", "failed", exit_code=2)
    said = run_main("runs", "watch", "one").err
    assert "fix the recipe and relaunch" in said and "resume" not in said


def test_show_of_ppo_has_before_and_after(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    result = {"steps": 60, "seconds": 12.3456789, "before": {"mean_reward": -0.125}, "after": {"mean_reward": 1.5}}
    make_run(Stage.PPO, "one").write_json("result.json", result)
    text = run_main("runs", "show", "one").out
    assert "mean reward: -0.125 → 1.5\n" in text and "seconds: 12.35\n" in text and "steps: 60\n" in text


@pytest.mark.parametrize(("columns", "last"), [(54, "METRIC"), (53, "AGE"), (40, "STEP")])
def test_ls_drops_columns_that_do_not_fit(
    columns: int, last: str, make_run: MakeRun, run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(Stage.SFT, "a-run-of-mine")
    monkeypatch.setattr(listing, "width", lambda _: columns)
    monkeypatch.setattr(output, "width", lambda _: columns)
    lines = run_main("runs", "ls").out.splitlines()
    assert lines[0].split()[-1] == last
    assert max(map(len, lines)) <= columns


def test_no_command_lets_foreign_text_through(
    make_run: MakeRun, run_main: Callable[..., Any], payloads: list[str], assert_clean: Callable[[str], None]
) -> None:
    poison = "\n".join(payloads)
    run = make_run(
        Stage.SFT, "one", "failed", cause=poison, last_lines=payloads, overrides=[f"dataset_name={json.dumps(poison)}"]
    )
    (run.attempt_dir(1) / "log.txt").write_text(poison)
    events = EventWriter(run.attempt_dir(1) / "events.jsonl")
    events.write("phase", phase=poison)
    events.write("health", data={"message": poison})
    events.write("metrics", step=1, metrics={poison: 1.0, "loss": 1.0})
    events.close()
    for words in (
        ["runs", "ls"],
        ["runs", "show", "one"],
        ["runs", "logs", "one"],
        ["runs", "logs", "one", "-f"],
        ["runs", "watch", "one"],
        ["runs", "stop", "one"],
        ["runs", "show", poison.replace("\x00", "")],
        ["launch", "sft", poison.replace("\x00", "")],
        ["launch", "sft", f"model_name_or_path={json.dumps(poison)}", "dataset_name=demo"],
    ):
        result = run_main(*words)
        assert_clean(result.out)
        assert_clean(result.err)
        assert "unexpected" not in result.err, words
        assert "[@click=app.quit]markup[/]" in result.out + result.err or words[1] in ("ls", "stop")
        if words[0] == "runs" and words[1] != "logs" and len(words) == 3 and words[2] == "one":
            document = run_main(*words, "--json")
            assert_clean(document.out)
            assert document.json()["cause"] == poison  # escaped, not lost


def test_show_has_measured_peaks_and_the_highest_phase(
    make_run: Callable[..., RunDir], write_events: Callable[..., None], run_main: Callable[..., Any]
) -> None:
    run = make_run(Stage.PPO, "measured")
    for phase, allocated in (("rollout", 2 << 30), ("update", 3 << 30)):
        peaks = {"allocated": float(allocated), "rss": 1.0}
        write_events(run, ("memory", {"phase": phase, "metrics": peaks, "data": {"phase": peaks}}))
    assert "peak allocated 3.0 GiB, RSS 1 B, most in update" in run_main("runs", "show", "measured").out
    assert run_main("runs", "show", "measured", "--json").json()["memory_by_phase"]["rollout"]["allocated"] == 2 << 30


def _stock(make_run: MakeRun, write_events: Callable[..., None]) -> None:
    now = time.time()
    for place, (name, reward) in enumerate((("one", 0.5), ("two", 2.5), ("three", 1.5))):
        run = make_run(Stage.PPO, name, created=now - 3600 + place)
        write_events(run, ("metrics", {"step": 2, "metrics": {"objective/scores": reward, "objective/kl": 4.0}}))
    make_run(Stage.SFT, "other", "failed", created=now - 60)


def test_ls_filters_sorts_and_shows_the_columns_asked_for(
    make_run: MakeRun, write_events: Callable[..., None], run_main: Callable[..., Any]
) -> None:
    _stock(make_run, write_events)

    def ids(*options: str) -> list[str]:
        return [run["run"] for run in run_main("runs", "ls", "--json", *options).json()["runs"]]

    assert ids() == ["one", "two", "three", "other"]
    assert ids("--filter", "reward>1") == ["two", "three"] and ids("--filter=-stage:ppo") == ["other"]
    assert ids("--sort", "reward") == ["two", "three", "one", "other"]
    assert ids("--sort", "REWARD", "--reverse", "--filter", "stage:ppo") == ["one", "three", "two"]
    assert ids("--filter", "stage:ppo", "--reverse") == ["three", "two", "one"]
    table = run_main("runs", "ls", "--columns", "run,kl,state", "--sort", "run").out.splitlines()
    assert [line.split() for line in table] == [
        ["RUN", "KL", "STATE"],
        ["one", "4", "finished"],
        ["other", "failed"],
        ["three", "4", "finished"],
        ["two", "4", "finished"],
    ]
    assert run_main("runs", "ls", "--filter", "nothing").err == "No run matches.\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--filter", "colour:red"], "--filter: no field `colour`"),
        (["--sort", "colour"], "--sort colour: expected one of run, stage"),
        (["--columns", "run,colour"], "--columns colour: expected one of run, stage"),
    ],
)
def test_ls_refuses_what_it_does_not_know(
    options: list[str], message: str, make_run: MakeRun, run_main: Callable[..., Any]
) -> None:
    make_run(Stage.SFT, "a")
    result = run_main("runs", "ls", *options)
    assert result.code == 2 and message in result.err


def test_tags_note_and_title_are_written_and_listed(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    make_run(Stage.SFT, "a")
    assert run_main("runs", "tag", "a", "paper", "old", "--json").json()["tags"] == ["paper", "old"]
    assert run_main("runs", "tag", "a", "--remove", "old").err == "a: title: none; tags: paper\n"
    assert run_main("runs", "note", "a", "lr too high").code == 0
    document = run_main("runs", "rename", "a", "The base", "--json").json()
    assert document == {"run": "a", "title": "The base", "tags": ["paper"], "note": "lr too high"}
    (listed,) = run_main("runs", "ls", "--json", "--filter", "tag:paper base").json()["runs"]
    assert {name: listed[name] for name in document} == document
    shown = run_main("runs", "show", "a").out
    assert "The base" in shown and "paper" in shown and "lr too high" in shown
    result = run_main("runs", "tag", "a", "two words")
    assert result.code == 2 and "cannot be a tag" in result.err
