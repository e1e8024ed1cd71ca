"""Rows of every kind of source."""

import json
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackllama_engine.contract.errors import DataError
from stackllama_engine.contract.stages import Split
from stackllama_engine.data import row_files
from stackllama_engine.data.kinds import kind_of
from stackllama_engine.data.local import stamp
from stackllama_engine.data.prepare import prepare
from stackllama_engine.data.sources import open_rows, unique_questions

ROWS = [{"question": f"q{n}", "response_j": f"good {n}", "response_k": f"bad {n}"} for n in range(40)]


def write_lines(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_file_whole_and_by_split(tmp_path: Path) -> None:
    name = write_lines(tmp_path / "pairs.jsonl", ROWS)
    assert list(open_rows(name, "all")) == ROWS
    parts = [list(open_rows(name, split)) for split in Split]
    assert all(parts)
    assert sorted((row for part in parts for row in part), key=lambda row: int(row["question"][1:])) == ROWS


@given(st.lists(st.text(alphabet="abcdef ", min_size=1).filter(str.strip), min_size=1, max_size=60))
def test_no_question_of_a_file_is_in_two_splits(tmp_path_factory: pytest.TempPathFactory, questions: list[str]) -> None:
    path = tmp_path_factory.mktemp("splits") / "pairs.jsonl"
    name = write_lines(path, ({"prompt": text, "chosen": "x", "rejected": "y"} for text in questions))
    found: dict[str, set[str]] = {}
    for split in Split:
        try:
            rows = list(open_rows(name, split))
        except DataError:
            continue  # a split that got no question
        for row in rows:
            found.setdefault(row["question"], set()).add(split)
    assert set(found) == set(questions)
    assert all(len(splits) == 1 for splits in found.values())


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".array.json", ".parquet"])
def test_formats_and_usual_column_names(tmp_path: Path, suffix: str) -> None:
    rows = [{"instruction": "q", "chosen": "j", "rejected": "k", "extra": 1}]
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == ".array.json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        write_lines(path, rows)
    assert list(open_rows(str(path), "all")) == [{"question": "q", "response_j": "j", "response_k": "k"}]
    assert list(open_rows(str(path), "all", needs=("question",), extra=["extra"])) == [{"question": "q", "extra": 1}]


def test_prepared_directory_is_read(dump: Any, tmp_path: Path) -> None:
    report = prepare(dump.write(dump.forum()), tmp_path / "out")
    name = str(tmp_path / "out")
    for split in Split:
        rows = list(open_rows(name, split, needs=("question", "response_j"), extra=("question_id", "score_j")))
        assert len(rows) == report.splits[split].pairs
        assert set(rows[0]) == {"question_id", "question", "response_j", "score_j"}
    assert len(list(open_rows(name, "all"))) == 120
    assert len(list(open_rows(name, "rl", limit=2))) == 2
    assert list(open_rows(name, "rl", limit=0)) == []


def test_demo_rows_are_read() -> None:
    for split in Split:
        rows = list(open_rows("demo", split, limit=3))
        assert len(rows) == 3
        assert set(rows[0]) == {"question", "response_j", "response_k"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'question': 1}", r"pairs\.jsonl: line 3: not JSON"),
        ('{"question": "q", "response_j": "\\ud800"}', r"pairs\.jsonl: line 3: not JSON"),
        ("[" * 100_000, r"pairs\.jsonl: line 3: not JSON"),
        ("[1, 2]", r"pairs\.jsonl: line 3: expected an object"),
        ('{"question": "q", "response_j": "j"}', "line 3: column response_k is missing, which earlier rows have"),
        ('{"question": "q", "response_j": 7, "response_k": "k"}', "line 3: column response_j holds int, not text"),
        (
            '{"question": [{"role": "user"}], "response_j": "j", "response_k": "k"}',
            "line 3: .* holds list.* Messages are read from",
        ),
    ],
)
def test_error_names_a_bad_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n\n{line}\n")
    with pytest.raises(DataError, match=message):
        list(open_rows(str(path), "all"))


def test_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "_LONGEST_LINE", 1000)
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + "x" * 5000)
    with pytest.raises(DataError, match="line 2 is longer"):
        list(open_rows(str(path), "all"))


def test_missing_columns_name_what_is_there(tmp_path: Path) -> None:
    name = write_lines(tmp_path / "pairs.jsonl", [{"title": "t", "question": "q", "answer": "a"}])
    with pytest.raises(
        DataError, match=r"no column response_k \(or rejected\); its columns are title, question, answer"
    ):
        list(open_rows(name, "all"))
    assert list(open_rows(name, "all", needs=("question", "response_j"))) == [{"question": "q", "response_j": "a"}]


def test_bad_texts_are_skipped_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [
        ROWS[0] | {"question": None},
        ROWS[0] | {"response_j": " \n"},
        ROWS[0] | {"response_k": "a\0b"},
        ROWS[0] | {"response_k": ""},
    ]
    name = write_lines(tmp_path / "pairs.jsonl", [*bad, ROWS[1]])
    skipped: Counter[str] = Counter()
    assert list(open_rows(name, "all", skipped=skipped)) == [ROWS[1]]
    assert skipped == {
        "question is null": 1,
        "response_j is blank": 1,
        "response_k has a NUL byte": 1,
        "response_k is blank": 1,
    }
    assert "skipped 1 × question is null" in caplog.text
    only_bad = write_lines(tmp_path / "bad.jsonl", bad)
    with pytest.raises(DataError, match="no usable row in split all: 1 × question is null"):
        list(open_rows(only_bad, "all"))


def test_invalid_sources_are_refused_with_a_fix(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "truncated.parquet").write_bytes(b"PAR1 and no more")
    for name, message in (
        (str(tmp_path / "none.jsonl"), "no such file"),
        (str(tmp_path / "notes.txt"), "expected a .jsonl, .json, .csv, .tsv, .parquet or .arrow file"),
        (str(tmp_path / "truncated.parquet"), "not a Parquet file"),
        (str(tmp_path / "empty.jsonl"), "no row in split all"),
        ("./none", "'./none' is not a data source"),
        ("a/b/c", "'a/b/c' is not a data source"),
    ):
        with pytest.raises(DataError, match=message):
            list(open_rows(name, "all"))
    name = write_lines(tmp_path / "pairs.jsonl", ROWS[:1])
    with pytest.raises(DataError, match="has no split 'train'; choose one of finetune, reward, rl, evaluation or all"):
        list(open_rows(name, "train"))


def test_foreign_or_newer_manifest_is_refused(dump: Any, tmp_path: Path) -> None:
    prepare(dump.write(dump.forum(20)), tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="this version reads stackllama-pairs 1"):
        list(open_rows(str(tmp_path / "out"), "rl"))
    manifest.write_text('{"name": "an extension"}')
    with pytest.raises(DataError, match="is not the manifest of a prepared directory"):
        list(open_rows(str(tmp_path / "out"), "rl"))


# The peak is read from /proc: ru_maxrss survives exec, so it would be that of the test runner.
MEASURE = r"""
import re, sys
from stackllama_engine.data.sources import open_rows, unique_questions
rows = sum(1 for _ in open_rows(sys.argv[1], "all"))
questions = sum(1 for _ in unique_questions(open_rows(sys.argv[1], "all")))
peak = int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1])
print(rows, questions, peak // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "allowed"), [("jsonl", 4), ("parquet", 32)])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, suffix: str, allowed: int) -> None:
    """200,000 rows of 25 questions, over 40 MB, against 1,000 rows. ``allowed``: MiB of buffers (Arrow's are large)."""

    def measure(count: int) -> list[int]:
        path = tmp_path / f"{count}.{suffix}"
        why = "why " * 50
        rows = ({"question": f"{n % 25} {why}", "response_j": f"j{n}", "response_k": "k"} for n in range(count))
        if suffix == "jsonl":
            write_lines(path, rows)
        else:
            parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
            parquet.write_table(arrow.Table.from_pylist(list(rows)), path, compression="none", use_dictionary=False)
        assert path.stat().st_size > count * 200
        argv = [sys.executable, "-c", MEASURE, str(path)]
        env = {"PYTHONPATH": str(Path(row_files.__file__).parents[2])}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    least, most = measure(1_000), measure(200_000)
    assert (least[:2], most[:2]) == ([1_000, 25], [200_000, 25])
    assert most[2] - least[2] < allowed, f"{least[2]} MiB for 1,000 rows, {most[2]} MiB for 200,000"


def test_copies_of_a_question_are_in_one_split_and_kept_once(tmp_path: Path) -> None:
    rows = [f"Is {n} a caf\u00e9?" for n in range(40)]
    copies = [copy for text in rows for copy in (text, f"{text}\n", f" {text}", text.replace("\u00e9", "e\u0301"))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": one}) + "\n" for one in copies))
    for split in Split:
        found = [row["question"] for row in open_rows(str(path), split, needs=("question",))]
        assert found and len(found) == 4 * len({text for text in rows if text in found})
    assert len(list(unique_questions(open_rows(str(path), "all", needs=("question",))))) == 40


def test_unique_questions_keep_the_first() -> None:
    rows = [{"question": "a", "n": 1}, {"question": "b", "n": 2}, {"question": "a", "n": 3}]
    assert list(unique_questions(rows)) == rows[:2]


def test_a_stamp_changes_with_its_files(dump: Any, tmp_path: Path) -> None:
    name = write_lines(tmp_path / "pairs.jsonl", ROWS[:1])
    first = stamp(name)
    assert stamp(name) == first
    write_lines(tmp_path / "pairs.jsonl", ROWS[:2])
    assert stamp(name) != first
    prepare(dump.write(dump.forum(20)), tmp_path / "out")
    first = stamp(str(tmp_path / "out"))
    with (tmp_path / "out" / "rl.jsonl").open("a") as file:
        file.write("\n")
    assert stamp(str(tmp_path / "out")) != first
    assert stamp("demo") != stamp("owner/name")
    with pytest.raises(DataError):
        stamp(str(tmp_path / "none.jsonl"))


def test_kind_of_a_source_is_found_from_its_name(tmp_path: Path) -> None:
    assert kind_of("lvwerra/stack-exchange-paired") == "hub"
    assert kind_of("demo") == "demo"
    assert kind_of(write_lines(tmp_path / "a.jsonl", ROWS)) == "file"


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace ``datasets`` by one that records its call and fails after the third row."""
    asked: list[dict[str, Any]] = []

    def load_dataset(name: str, config: str | None, **options: Any) -> Iterable[dict[str, Any]]:
        asked.append({"name": name, "config": config, **options})

        def rows() -> Iterable[dict[str, Any]]:
            yield from ROWS[:3]
            raise ConnectionError("reset by\npeer")

        return rows()

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_hub_is_called_with_split_and_revision(fake_hub: list[dict[str, Any]]) -> None:
    paired = "lvwerra/stack-exchange-paired"
    assert list(open_rows(paired, "rl", limit=3)) == ROWS[:3]
    list(open_rows("owner/set", "train", config="c", revision="main", streaming=False, limit=1))
    assert fake_hub == [
        {"name": paired, "config": None, "revision": None, "streaming": True, "split": "train", "data_dir": "data/rl"},
        {"name": "owner/set", "config": "c", "revision": "main", "streaming": False, "split": "train"},
    ]
    with pytest.raises(DataError, match="has no split 'train'; choose one of finetune, reward, rl, evaluation"):
        list(open_rows(paired, "train"))


def test_a_hub_that_fails_is_one_error(fake_hub: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match=r"'owner/set', split 'train', cannot be read after row 3: .*: reset by peer\."):
        list(open_rows("owner/set", "train"))


def test_hub_without_datasets_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs `datasets`: `pip install '\.\[train\]'` in a clone"):
        list(open_rows("owner/set", "train"))
