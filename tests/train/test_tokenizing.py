"""Rows tokenised in batches equal rows tokenised one by one, and large data sets are tokenised once."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from stackllama_engine.contract.errors import DataError
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.train import models, tokenizing
from stackllama_engine.train.encoding import Encoder
from stackllama_engine.train.stage_rows import pair, supervised
from stackllama_engine.train.tokenizing import BatchTokenizing

TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] | trim + '</s>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
FORMATS = (
    PromptFormat(),
    PromptFormat(kind="none"),
    PromptFormat(kind="chat", chat_template=TEMPLATE, system_prompt="Be brief."),
)
ODD = ("", " ", "Why?", "Is <s>this</s> <pad>?", "x" * 300, "é\n\n\t世界 🙂", "\ue0000\ue001", " spaces  around ")


def encoder_of(base: Path, prompt_format: PromptFormat) -> Encoder:
    return Encoder(models.load_tokenizer(str(base)), prompt_format)


def rows_of(count: int = 40) -> Dataset:
    """Make pairs of odd texts, some of them conversations of one turn."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        question = f"{number}: {ODD[number % len(ODD)]}"
        messages = [{"role": "user", "content": question}] if number % 3 == 0 else None
        chosen, rejected = ODD[number // 3 % len(ODD)], ODD[number // 5 % len(ODD)]
        rows.append({"question": question, "messages": messages, "response_j": chosen, "response_k": rejected})
    return Dataset.from_list(rows)


def encodings(encoder: Encoder) -> list[Any]:
    """Return what SFT and the reward stage make of a row."""

    def of_sft(row: dict[str, Any]) -> dict[str, Any]:
        prompt, response = supervised(encoder, row)
        return {"input_ids": prompt + response, "prompt_length": len(prompt)}

    def of_reward(row: dict[str, Any]) -> dict[str, Any]:
        chosen, rejected = pair(encoder, row)
        return {"chosen_ids": chosen, "rejected_ids": rejected}

    return [of_sft, of_reward]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenizing, "BATCH", 7)
    yield tmp_path / "cache" / "stackllama" / "tokens"


@pytest.mark.parametrize("prompt_format", FORMATS, ids=lambda one: one.kind)
@pytest.mark.parametrize("kept_from", [1, 1000])
def test_rows_in_batches_equal_rows_one_by_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt_format: PromptFormat, kept_from: int
) -> None:
    monkeypatch.setattr(tokenizing, "KEPT_FROM", kept_from)
    rows, encoder = rows_of(), encoder_of(base, prompt_format)
    for number, encode in enumerate(encodings(encoder)):
        alone = rows.map(encode, remove_columns=rows.column_names)
        together = BatchTokenizing(encoder, RunDir(tmp_path / f"run{number}"), number)
        (tmp_path / f"run{number}" / "cache").mkdir(parents=True, exist_ok=True)
        first, second = together(rows, encode), together(rows, encode)
        assert alone.to_list() == first.to_list() == second.to_list()
        assert alone.features == first.features == second.features


class Counting:
    """An encoding that counts how often it is asked."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.calls = 0

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        return {"input_ids": self.encoder.text_ids(row["question"], row["response_j"])}


def tokenized(run: Path, encode: Counting, rows: Dataset, *what: object) -> list[Any]:
    (run / "cache").mkdir(parents=True, exist_ok=True)
    return BatchTokenizing(encode.encoder, RunDir(run), *what)(rows, encode).to_list()


def test_another_run_of_the_same_data_tokenises_nothing(
    base: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "KEPT_FROM", 1)
    rows = rows_of()
    first, second = (Counting(encoder_of(base, PromptFormat())) for _ in range(2))
    made = tokenized(tmp_path / "a", first, rows, "sft")
    assert first.calls == 2 * len(rows) and len(list(cache.iterdir())) == 1
    assert tokenized(tmp_path / "b", second, rows, "sft") == made and second.calls == 0
    # each of these makes another result
    other = rows.map(lambda row: {"response_j": row["response_j"] + "!"})
    for encode, these, what in (
        (Counting(encoder_of(base, PromptFormat())), other, "sft"),
        (Counting(encoder_of(base, PromptFormat())), rows, "sft, responses alone"),
        (Counting(encoder_of(base, PromptFormat(kind="none"))), rows, "sft"),
    ):
        tokenized(tmp_path / "c", encode, these, what)
        assert encode.calls == 2 * len(rows)
    assert len(list(cache.iterdir())) == 4


def test_what_a_template_prints_is_part_of_the_key(
    base: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The role of a special token is no part of the tokenizer's file; a template that prints the date keeps nothing."""
    monkeypatch.setattr(tokenizing, "KEPT_FROM", 1)
    rows = rows_of()
    begun = PromptFormat(kind="chat", chat_template="{{ bos_token }}" + TEMPLATE)
    one, other = encoder_of(base, begun), encoder_of(base, begun)
    other.tokenizer.bos_token = other.tokenizer.eos_token
    made = [tokenized(tmp_path / name, Counting(each), rows) for name, each in (("a", one), ("b", other))]
    assert made[0] != made[1] and len(list(cache.iterdir())) == 2
    dated = PromptFormat(kind="chat", chat_template="{{ strftime_now('%Y') }}" + TEMPLATE)
    tokenized(tmp_path / "c", Counting(encoder_of(base, dated)), rows)
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_file_is_made_again(base: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "KEPT_FROM", 1)
    rows, encode = rows_of(), Counting(encoder_of(base, PromptFormat()))
    made = tokenized(tmp_path / "a", encode, rows)
    [file] = cache.iterdir()
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[: len(whole) // 2])
    assert tokenized(tmp_path / "b", encode, rows) == made
    assert file.read_bytes() == whole


def test_runs_at_once_write_one_whole_file(
    base: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "KEPT_FROM", 1)
    own = tmp_path / "tokens.arrow"
    own.write_bytes(b"tokens")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: tokenizing._keep("key", own), range(32)))
    assert [path.name for path in cache.iterdir()] == ["key.arrow"]
    assert (cache / "key.arrow").read_bytes() == b"tokens"


def test_the_file_unused_for_longest_makes_room(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "MOST_KEPT", 25)
    own = tmp_path / "own.arrow"
    for number, name in enumerate(("old", "older", "new")):
        own.unlink(missing_ok=True)
        own.write_bytes(bytes(10))
        if name == "new":
            os.utime(cache / "older.arrow", (1, 1))
        tokenizing._keep(name, own)
        os.utime(cache / f"{name}.arrow", (100 + number, 100 + number))
    assert sorted(path.name for path in cache.iterdir()) == ["new.arrow", "old.arrow"]


def test_a_cache_that_cannot_be_written_changes_nothing(
    base: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokenizing, "KEPT_FROM", 1)
    (tmp_path / "cache").write_text("a file where the directory would be")
    rows, encode = rows_of(), Counting(encoder_of(base, PromptFormat()))
    assert len(tokenized(tmp_path / "a", encode, rows)) == len(rows)
    assert "not kept for other runs" in caplog.text


def test_a_refused_conversation_is_our_own_error(base: Path, tmp_path: Path) -> None:
    encoder = encoder_of(base, PromptFormat())
    turns = [{"role": role, "content": "Hi."} for role in ("user", "assistant", "user")]
    rows = Dataset.from_list([{"question": "Hi.", "messages": turns, "response_j": "Hello.", "response_k": "Go."}])
    with pytest.raises(DataError, match="takes one question"):
        BatchTokenizing(encoder, RunDir(tmp_path))(rows, encodings(encoder)[0])
    assert encoder.prompt("Why?"), "and the encoder encodes one by one again"
