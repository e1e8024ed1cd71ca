"""Kinds of files, and several files as one source."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.errors import DataError
from stackllama_engine.data.kinds import files_of, kind_of
from stackllama_engine.data.local import stamp
from stackllama_engine.data.preview import preview
from stackllama_engine.data.sources import open_rows

ROWS: list[dict[str, Any]] = [{"question": f"q {n}\n“x”", "answer": f'a, "{n}"\t'} for n in range(3)]
EXPECTED = [{"question": row["question"], "response_j": row["answer"]} for row in ROWS]


def lines(rows: list[dict[str, Any]] = ROWS, end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def csv(delimiter: str) -> bytes:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    rows = [delimiter.join((quoted(row["answer"]), "1", quoted(row["question"]))) for row in ROWS]
    return "\r\n".join([delimiter.join(("answer", "id", "question")), *rows, ""]).encode()


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("pyarrow").compress(data, codec="zstd", asbytes=True)


def read(path: Path, split: str = "all") -> list[dict[str, Any]]:
    return list(open_rows(str(path), split, needs=("question", "response_j")))


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", lines()),
        ("a.jsonl", BOM + lines(end="\r\n")),
        ("a.jsonl.gz", gz(BOM + lines())),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", BOM + b" \n" + json.dumps(ROWS).encode()),
        ("a.json.gz", gz(json.dumps(ROWS).encode())),
        ("a.csv", csv(",")),
        ("a.csv", BOM + csv(",")),
        ("a.tsv", csv("\t")),
        ("a.csv.gz", gz(csv(","))),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_files_of_text(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert kind_of(str(path)) == "file"
    assert read(path) == EXPECTED
    assert preview(str(path), count=1).rows == EXPECTED[:1]


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.csv.zst"])
def test_zstd(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = zstd(lines() if "jsonl" in name else csv(","))
    path.write_bytes(data)
    assert read(path) == EXPECTED
    path.write_bytes(zstd(lines(ROWS * 1000))[:200])
    assert "damaged after line" in refusal(path) or "cannot be read: Truncated" in refusal(path)


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_files(tmp_path: Path, kind: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.Table.from_pylist(ROWS)
    path = tmp_path / "a.arrow"
    with (arrow.ipc.new_file if kind == "file" else arrow.ipc.new_stream)(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert read(path) == EXPECTED
    path.write_bytes(b"not an arrow file at all")
    assert "not an Arrow file" in refusal(path)


def test_a_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [row | {"messages": [{"role": "user", "content": "q"}]} for row in ROWS]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "saved")
    assert kind_of(str(tmp_path / "saved" / "train")) == "files"
    assert list(open_rows(str(tmp_path / "saved" / "train"), "all", needs=("question",), extra=["answer"]))[1] == {
        "question": "q",
        "messages": [{"role": "user", "content": "q"}],
        "answer": ROWS[1]["answer"],
    }
    assert refusal(tmp_path / "saved").endswith(f"holds several saved data sets; give one of {tmp_path}/saved/train.")


def test_a_folder_and_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "train-1.jsonl").write_bytes(lines(ROWS[1:2]))
    (tmp_path / "train-0.jsonl.gz").write_bytes(gz(lines(ROWS[:1])))
    (tmp_path / "valid.csv").write_bytes(csv(","))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / ".hidden.jsonl").write_text("no rows")
    assert [path.name for path in files_of(str(tmp_path))] == ["train-0.jsonl.gz", "train-1.jsonl", "valid.csv"]
    assert read(tmp_path) == [*EXPECTED[:2], *EXPECTED]
    assert read(tmp_path / "train-*") == EXPECTED[:2]
    assert preview(str(tmp_path / "train-*")).split == "all"
    first = stamp(str(tmp_path / "train-*"))
    (tmp_path / "train-2.jsonl").write_bytes(lines(ROWS[2:]))
    assert stamp(str(tmp_path / "train-*")) != first
    assert read(tmp_path / "train-*") == EXPECTED
    (tmp_path / "train-2.jsonl").write_text("{\n")
    assert f"{tmp_path}/train-2.jsonl: line 1: not JSON" in refusal(tmp_path)
    (tmp_path / "train-2.jsonl").write_text('{"question": 7, "answer": "a"}')
    assert "train-2.jsonl, line 1: column question holds int, not text" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"question,answer\nq,a\nq\n", "line 3 has 1 values, and the header 2 columns"),
        ("a.csv", b'question,answer\nq,a\n"q\n', "line 3: not CSV: unexpected end of data"),
        ("a.tsv", b"question\tanswer\nq\t\xff\n", "line 2: not UTF-8"),
        ("a.csv", b"question,answer\n" + b"q,a\n" * 5000 + b"q,\xe9t\xe9\n", "line 5002: not UTF-8"),
        ("a.csv", b"question,answer\rq,a\rq,\xe9\r", "line 3: not UTF-8"),
        ("a.csv", "question,answer\n".encode("utf-16"), "line 1: not UTF-8"),
        ("a.csv", b"question,question\nq,a\n", "two columns are called 'question'"),
        ("a.csv", b"", "no row in split all"),
        ("a.jsonl", b'{"question": "q", "answer": "a"}\n\n{"question"\n', "line 3: not JSON"),
        ("a.jsonl.gz", gz(lines() + b"{\n"), "line 4: not JSON"),
        ("a.jsonl.gz", gz(lines(ROWS * 20_000))[:2000], "the compressed file is damaged after line"),
        ("a.jsonl.gz", b"plain text", "cannot be read: Not a gzipped file"),
        ("a.jsonl.bz2", b"", "unpack this one first"),
        (
            "a.7z",
            b"",
            "unpack a Stack Exchange dump with `7z x .*a.7z Posts.xml` .*, then convert it with `data prepare`",
        ),
        ("a.parquet.gz", b"", "unpack this one first"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(path)


def test_folders_without_data_are_refused(tmp_path: Path) -> None:
    assert "holds no data: it has neither manifest.json" in refusal(tmp_path)
    assert "no file has such a name" in refusal(tmp_path / "train-*.jsonl")
    (tmp_path / "a.jsonl").write_bytes(lines())
    (tmp_path / "b.jsonl.xz").touch()
    assert "b.jsonl.xz: expected" in refusal(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert "notes.txt: expected a .jsonl, .json, .csv, .tsv, .parquet or .arrow file" in refusal(tmp_path / "*.txt")


@pytest.mark.parametrize("facts", ['{"_data_files": [{"x": 1}]}', '{"_data_files": 5}', "[1]"])
def test_an_odd_state_of_a_saved_data_set_is_an_error(tmp_path: Path, facts: str) -> None:
    (tmp_path / "state.json").write_text(facts)
    with pytest.raises(DataError, match=r"state\.json cannot be read: "):
        files_of(str(tmp_path))


def test_somebody_elses_state_beside_data_is_no_saved_data_set(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "q"}\n')
    for name in ("state.json", "dataset_dict.json"):
        (tmp_path / name).write_text('{"step": 3}')
    assert files_of(str(tmp_path)) == [tmp_path / "rows.jsonl"]
