"""`doctor`, `info`, `data`."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.small_cgroup import LIMIT, console_inside, small_cgroup

from stackllama_console.cli import doctor as doctor_module
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.launch.nvml import Gpu

POSTS = """<?xml version="1.0" encoding="utf-8"?>
<posts>
  <row Id="1" PostTypeId="1" AcceptedAnswerId="2" Score="3" Body="&lt;p&gt;How do I boil an egg?&lt;/p&gt;" />
  <row Id="2" PostTypeId="2" ParentId="1" Score="7" Body="&lt;p&gt;In water, for six minutes.&lt;/p&gt;" />
  <row Id="3" PostTypeId="2" ParentId="1" Score="0" Body="&lt;p&gt;You don't.&lt;/p&gt;" />
</posts>
"""


def test_doctor_lists_versions_and_whether_training_is_possible(run_main: Callable[..., Any]) -> None:
    report = run_main("doctor", "--json")
    facts = report.json()
    assert report.code == (0 if facts["can_train"] else 1)
    assert facts["packages"]["msgspec"] and facts["python"].startswith("3.") and facts["disk_free"] > 0
    text = run_main("doctor")
    assert text.code == report.code
    assert f"msgspec {facts['packages']['msgspec']}" in text.out


def test_doctor_respects_the_limit_of_a_parent_cgroup() -> None:
    with small_cgroup() as cgroup:
        done = subprocess.run(console_inside(cgroup, "doctor", "--json"), capture_output=True, text=True)
        text = subprocess.run(console_inside(cgroup, "doctor"), capture_output=True, text=True).stdout
    facts = json.loads(done.stdout)
    assert facts["memory"] == LIMIT and 0 < facts["memory_available"] <= LIMIT
    assert f"available, limited by {facts['memory_limit']}" in text and cgroup.parent.name in facts["memory_limit"]


def test_doctor_names_missing_packages_and_how_to_get_them(
    run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "_version", lambda name: None if name in ("torch", "gguf") else "1.0")
    result = run_main("doctor")
    assert result.code == 1
    assert "torch missing: `pip install '.[train]'` in a clone of the repository" in result.out
    assert "gguf missing (base models in .gguf files)" in result.out
    assert "Training is not possible on this machine yet." in result.out


def test_doctor_lists_gpus(run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(0, "A GPU \x1b[2J", 80 * 1024**3, 79 * 1024**3)
    monkeypatch.setattr(doctor_module, "find_gpus", lambda: ([gpu], "600.1", None))
    monkeypatch.setattr(doctor_module, "_version", lambda name: "2.13.0+cpu")
    result = run_main("doctor")
    assert "0: A GPU , 79.0 GiB of 80.0 GiB free" in result.out and "driver 600.1" in result.out
    assert "torch 2.13.0+cpu has no CUDA" in result.out
    assert "\x1b" not in result.out


def test_doctor_reports_a_full_disk(run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10 * 1024**2

    monkeypatch.setattr(doctor_module.shutil, "disk_usage", lambda _: Usage())
    result = run_main("doctor")
    assert result.code == 1 and "only 10.0 MiB free at" in result.out


def test_info_prints_paths(run_main: Callable[..., Any], home: Home, tmp_path: Path) -> None:
    facts = run_main("info", "--json").json()
    assert facts["runs"] == str(home.runs_dir)
    assert facts["crashes"] == str(tmp_path / "state" / "stackllama")
    assert str(home.runs_dir) in run_main("info").out


def test_data_prepare_writes_what_preview_reads(run_main: Callable[..., Any], tmp_path: Path) -> None:
    posts, out = tmp_path / "Posts.xml", tmp_path / "D"
    posts.write_text(POSTS)
    facts = run_main("data", "prepare", str(posts), "--out", str(out), "--json").json()
    assert (facts["questions"], facts["answers"], facts["pairs"], facts["out"]) == (1, 2, 1, str(out))
    (split,) = (name for name, count in facts["splits"].items() if count["pairs"])
    again = run_main("data", "prepare", str(posts), "--out", str(out))
    assert again.code == 3 and again.err.count("\n") == 1
    found = run_main("data", "preview", str(out), "--split", split, "--json").json()
    assert found["texts"] == ["Question: How do I boil an egg?\n\nAnswer: In water, for six minutes."]
    text = run_main("data", "preview", str(out), "--split", split).out
    assert "    Answer: In water, for six minutes.\n" in text and "    You don't.\n" in text


def test_data_preview_is_sanitised(
    run_main: Callable[..., Any], tmp_path: Path, payloads: list[str], assert_clean: Callable[[str], None]
) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"question": p.replace("\x00", ""), "response_j": "a" + p[1:].replace("\x00", "")} for p in payloads]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data", "preview", str(file), "-n", "50"]
    result = run_main(*words)
    assert result.code == 0 and "[@click=app.quit]markup[/]" in result.out
    assert_clean(result.out + result.err)
    document = run_main(*words, "--json")
    assert_clean(document.out)
    assert [row["question"] for row in document.json()["rows"]] == [row["question"] for row in rows]


@pytest.mark.parametrize("source", ["nosuch.jsonl", "./nosuch", "--x", ""])
def test_data_preview_reports_a_missing_source(source: str, run_main: Callable[..., Any]) -> None:
    result = run_main("data", "preview", "--", source)
    assert result.code == 2
    assert result.err.count("\n") == 1 and "Traceback" not in result.err


def test_data_prepare_refuses_another_file(run_main: Callable[..., Any], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.xml"
    wrong.write_text("<html></html>")
    result = run_main("data", "prepare", str(wrong), "--out", str(tmp_path / "D"))
    assert result.code == 2 and result.err.count("\n") == 1 and str(wrong) in result.err
    assert not (tmp_path / "D").exists()
