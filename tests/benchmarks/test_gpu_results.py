"""Results of GPU benchmarks: a run that was cut off resumes, and rows of another machine or version do not count."""

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_ppo  # pyright: ignore[reportMissingImports]
import gpu_work  # pyright: ignore[reportMissingImports]
from gpu_results import ROOT, Results  # pyright: ignore[reportMissingImports]

from stackllama_engine.train.left_out import NAMES, VARIABLE, left_out

TODAY = {"device": "card", "versions": {"torch": "2"}, "engine": "abc"}


def test_a_cell_that_was_measured_is_found_again(tmp_path: Path) -> None:
    Results(tmp_path / "r.jsonl", TODAY).add("one", {"seconds": 1.5})
    again = Results(tmp_path / "r.jsonl", TODAY)
    assert again.find("one") == {"cell": "one", "seconds": 1.5, **TODAY}
    assert again.find("two") is None


def test_rows_of_other_versions_stay_and_do_not_count(tmp_path: Path) -> None:
    Results(tmp_path / "r.jsonl", TODAY | {"engine": "old"}).add("one", {"seconds": 9})
    now = Results(tmp_path / "r.jsonl", TODAY)
    assert now.find("one") is None and now.newest() == {}
    now.add("one", {"seconds": 1})
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 2
    assert [row["seconds"] for row in now.newest().values()] == [1]


def test_a_failure_is_tried_again_and_hides_no_measurement(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.jsonl", TODAY)
    results.add("one", {"failure": "out of memory"})
    assert results.find("one") is None and "failure" in results.newest()["one"]
    results.add("one", {"seconds": 1})
    results.add("one", {"failure": "again"})
    assert results.newest()["one"]["seconds"] == 1 and results.find("one")


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Results(path, TODAY).add("one", {"seconds": 1})
    with path.open("a") as file:
        file.write('{"cell": "two", "sec')
    Results(path, TODAY).add("three", {"seconds": 3})
    assert list(Results(path, TODAY).newest()) == ["one", "three"]


def test_the_cells_of_a_model_begin_with_what_says_most() -> None:
    cells = gpu_ppo.cells("7b", ["bf16", "nf4", "int8"])
    names = [cell.name for cell in cells]
    assert names[:4] == [
        "7b, bf16, own critic, all",
        "7b, bf16, critic on the policy's states, all",
        "7b, nf4, own critic, all",
        "7b, int8, own critic, all",
    ]
    assert set(names[4:]) >= {f"7b, bf16, own critic, without {name}" for name in gpu_work.PATHS}
    assert len(set(names)) == len(names)
    assert (cells[0].work.batch, cells[3].work.batch, cells[3].work.mini) == (128, 32, 32)


@pytest.mark.parametrize(
    ("variant", "names"), [("all", ()), ("none", gpu_work.PATHS), ("without graph", ("graph",)), ("with liger", ())]
)
def test_a_variant_leaves_out_what_it_names(
    monkeypatch: pytest.MonkeyPatch, variant: str, names: tuple[str, ...]
) -> None:
    monkeypatch.setenv(VARIABLE, "casts")  # of the variant before
    keys = gpu_work.leave_out(variant)
    assert tuple(name for name in NAMES if left_out(name)) == names
    assert keys == (("use_liger_kernel=true",) if variant == "with liger" else ())


def test_a_time_limit_allows_only_what_ends_in_it() -> None:
    deadline = gpu_work.Deadline(1000)
    assert deadline.allows(900) and not deadline.allows(1000)


def test_no_module_asks_at_import_what_is_left_out() -> None:
    """One process measures several variants, so what is left out is asked when it is used."""
    found: list[str] = []
    for path in (ROOT / "engine").rglob("*.py"):
        if "left_out(" not in (text := path.read_text(encoding="utf-8")):
            continue
        tree = ast.parse(text)
        inside = {
            node
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for node in ast.walk(function)
        }
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("left_out") and node not in inside
        ]
    assert found == []
