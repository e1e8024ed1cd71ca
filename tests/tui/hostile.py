"""Directories in which every text is one that a terminal or a markup parser would obey."""

import json
from pathlib import Path
from typing import Any

import msgspec
from tests.cli.conftest import PAYLOADS
from tests.tui.screens_kit import add_samples, make_run

from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

ALL = " ".join(PAYLOADS)


def hostile_run(home: Home, name: str = "hostile", stage: Stage = Stage.PPO, phase: str = "failed") -> RunDir:
    """Make a run whose metrics, log, samples, notices, phases, cause, result, host and recipe are hostile."""
    run = make_run(home, stage, name, phase=phase)
    events = EventWriter(run.attempt_dir(1) / "events.jsonl")
    for payload in PAYLOADS:
        events.write("phase", phase=payload)
        events.write("health", data={"message": payload})
    names = ("objective/scores", "loss", *PAYLOADS)
    for step in range(1, 6):
        events.write("metrics", step=step, metrics=dict.fromkeys(names, step / 2))
        events.write("memory", metrics=dict.fromkeys(("rss", *PAYLOADS), step * 1e9))
    events.write("progress", step=5, total_steps=10)
    events.close()
    (run.attempt_dir(1) / "log.txt").write_bytes(b"\n".join(map(_bytes, PAYLOADS)) + b"\xff\xfe\nno end \x1b[")
    add_samples(run, *(_row(index, payload) for index, payload in enumerate(PAYLOADS)))
    recipe = {"model_name_or_path": ALL, "dataset_name": PAYLOADS[0], PAYLOADS[13]: PAYLOADS[14]}
    run.recipe_file.write_text(json.dumps(recipe))  # JSON is YAML
    run.write_json("result.json", {payload: payload for payload in PAYLOADS} | {"loss_last": PAYLOADS[0]})
    run.write_launch(msgspec.structs.replace(run.read_launch(), host=ALL, parents=[ALL], versions={ALL: ALL}))
    state = msgspec.structs.replace(run.read_state(), cause=ALL, last_lines=PAYLOADS, exit_code=1)
    run.write_state(state)
    return run


def hostile_directory(parent: Path) -> Path:
    """Make another trainer's directory, whose own name is hostile too."""
    path = parent / "[@click=app.quit]x[/] \x1b]52;c;aGk=\x07\u202eout"
    path.mkdir(parents=True)
    rows = [{"step": step, "loss": 1 / step, **dict.fromkeys(PAYLOADS, step)} for step in range(1, 6)]
    (path / "trainer_state.json").write_text(json.dumps({"log_history": rows, "global_step": 5, "max_steps": 10}))
    lines = [{"current_steps": 5, "total_steps": 10, "loss": 0.5, "percentage": ALL, "elapsed_time": ALL, ALL: ALL}]
    (path / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "trainer.log").write_bytes(b"\n".join(map(_bytes, PAYLOADS)) + b"\n")
    return path


def _row(step: int, payload: str) -> dict[str, Any]:
    return {"step": step, "question": payload, "response": ALL, "reward": 1.0, "kl": 0.1, "length": 3, payload: payload}


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
