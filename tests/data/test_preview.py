"""Content of a preview, and its imports."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_engine.contract.errors import DataError
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.data import sources
from stackllama_engine.data.prepare import prepare
from stackllama_engine.data.preview import Length, preview

ROOT = str(Path(sources.__file__).parents[2])


def run(*argv: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": ROOT, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run([sys.executable, *argv], env=env, capture_output=True, text=True)


def test_template_joins_question_and_answer() -> None:
    assert PromptFormat().render("Why?") == "Question: Why?\n\nAnswer: "
    assert PromptFormat().render("Why?", "So.") == "Question: Why?\n\nAnswer: So."


def test_preview_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    rows = [{"instruction": "a" * n, "answer": "b"} for n in (1, 5, 9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"instruction": "", "answer": ""}]))
    seen = preview(str(path), count=2)
    assert (seen.kind, seen.split, seen.columns, seen.total) == ("file", "all", ["question", "response_j"], None)
    assert seen.rows == [{"question": "a", "response_j": "b"}, {"question": "aaaaa", "response_j": "b"}]
    assert seen.texts[0] == "Question: a\n\nAnswer: b"
    assert seen.looked_at == 3
    assert seen.lengths["question"] == Length(shortest=1, median=5, longest=9)
    assert seen.skipped == {"instruction is blank": 1}


def test_preview_of_a_prepared_directory(dump: Any, tmp_path: Path) -> None:
    report = prepare(dump.write(dump.forum()), tmp_path / "out")
    seen = preview(str(tmp_path / "out"), "rl")
    assert seen.counts == {name: count.pairs for name, count in report.splits.items()}
    assert seen.total == report.splits["rl"].pairs == seen.looked_at
    assert len(seen.rows) == 3
    assert preview(str(tmp_path / "out"), "all").total == 120


def test_preview_of_a_hub_set_runs_in_a_separate_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = "datasets" in sys.modules
    with pytest.raises(DataError, match="Hub data set 'nobody/none-such', split 'train', cannot be read"):
        preview("nobody/none-such")
    with pytest.raises(DataError, match="did not answer within 0 s"):
        preview("nobody/none-such", patience=0.01)
    assert ("datasets" in sys.modules) == before


def test_the_module_prints_one_document(dump: Any, tmp_path: Path) -> None:
    path = dump.write(dump.forum())
    done = run("-m", "stackllama_engine.data", "prepare", str(path), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["pairs"] == 120
    done = run("-m", "stackllama_engine.data", "preview", str(tmp_path / "out"), "--split", "reward", "--count", "1")
    expected = msgspec.to_builtins(preview(str(tmp_path / "out"), "reward", count=1))
    assert json.loads(done.stdout) == expected


def test_the_module_ends_an_error_with_one_line_and_its_code(tmp_path: Path) -> None:
    done = run("-m", "stackllama_engine.data", "preview", "./none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("'./none' is not a data source") and done.stderr.count("\n") == 1
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    done = run("-m", "stackllama_engine.data", "prepare", "Posts.xml", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)


def test_no_module_imports_what_trains() -> None:
    names = [path.stem for path in Path(sources.__file__).parent.glob("*.py") if not path.stem.startswith("__")]
    code = "".join(f"import stackllama_engine.data.{name}\n" for name in sorted(names))
    heavy = ("torch", "transformers", "datasets", "pyarrow", "textual")
    code += f"import sys; print([name for name in {heavy} if name in sys.modules])"
    done = run("-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert "sources" in names
