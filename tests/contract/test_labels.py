"""Title, tags and note of a run: a file of the person's own, beside the run."""

from pathlib import Path

import pytest

from stackllama_engine.contract.errors import DamagedError, RefusedError, UsageError
from stackllama_engine.contract.labels import Labels, change_tags, read_labels, set_note, set_title
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return Home(tmp_path / "home").create(Stage.SFT, "model_name_or_path: demo\n", "run")


def test_a_run_without_labels_has_no_file_and_none_is_left_behind(run: RunDir) -> None:
    assert read_labels(run) == Labels()
    change_tags(run, ["paper"], [])
    set_title(run, "  The base  ")
    assert set_note(run, "lr too high") == read_labels(run) == Labels("The base", ("paper",), "lr too high")
    file = run.path / "labels.json"
    assert file.stat().st_mode & 0o777 == 0o600
    change_tags(run, [], ["paper", "not-there"])
    set_title(run, "")
    set_note(run, "")
    assert not file.exists() and read_labels(run) == Labels()


def test_tags_are_added_once_in_their_order(run: RunDir) -> None:
    change_tags(run, ["b", "a"], [])
    assert change_tags(run, ["a", "c"], ["b"]).tags == ("a", "c")


@pytest.mark.parametrize("tag", ["", "two words", "a,b", "-old", "a:b", "reward>1", "x" * 41, "\x1b[2J", "a\u202e"])
def test_what_a_filter_could_not_name_is_no_tag(run: RunDir, tag: str) -> None:
    with pytest.raises(UsageError, match="cannot be a tag"):
        change_tags(run, [tag], [])
    assert not (run.path / "labels.json").exists()


@pytest.mark.parametrize("title", ["x" * 81, "two\nlines", "\x1b[31mred"])
def test_a_title_is_one_line_of_plain_text(run: RunDir, title: str) -> None:
    with pytest.raises(UsageError, match="a title is one line of at most 80 characters"):
        set_title(run, title)


def test_too_many_tags_are_refused(run: RunDir) -> None:
    with pytest.raises(UsageError, match="at most 32 tags"):
        change_tags(run, [f"tag{number}" for number in range(33)], [])


def test_a_damaged_file_is_named_and_not_overwritten(run: RunDir) -> None:
    file = run.path / "labels.json"
    file.write_text("{")
    with pytest.raises(DamagedError, match=r"labels\.json.*remove it"):
        change_tags(run, ["a"], [])
    assert file.read_text() == "{"


def test_a_file_that_cannot_be_written_is_refused(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stackllama_engine.contract.labels.write_whole", full)
    with pytest.raises(RefusedError, match=r"labels\.json cannot be written: No space left"):
        set_title(run, "x")
