"""Pairs tokenised for the reward stage: row by row, in batches, and as an earlier run kept them, in turns.

    python benchmarks/tokenising.py                  # 100,000 pairs, 10,000 of them row by row; two rounds
    python benchmarks/tokenising.py --pairs 10000 --rounds 3
    python benchmarks/tokenising.py --tiny           # some pairs: whether it runs, not how fast

Questions and answers are words of the demo's posts, drawn at random; the tokenizer is the demo's, with as many threads
as a stage on this machine gets. What is kept lies in a folder of its own, which is removed. Besides the time that
passes, each line has the processor time of the process, its tokenizer's threads included.
"""

import argparse
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "engine")]

from stackllama_engine.contract.base import DEMO_BASE  # noqa: E402 - the path is set above
from stackllama_engine.contract.threads import thread_environment, threads_per_process  # noqa: E402
from stackllama_engine.data import demo_data  # noqa: E402

_QUESTION, _ANSWER = 58, 115
"""Words."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where batches have other tokens than rows have."""
    options = _options(arguments)
    threads = threads_per_process()
    os.environ.update(thread_environment(threads))
    with tempfile.TemporaryDirectory(prefix="tokenising-") as folder:
        os.environ |= {"XDG_CACHE_HOME": folder, "HF_DATASETS_CACHE": f"{folder}/datasets"}
        return _measure(options, Path(folder), threads)


def _measure(options: argparse.Namespace, folder: Path, threads: int) -> int:
    from datasets import Dataset, disable_progress_bars

    from stackllama_engine.contract.prompt_format import PromptFormat
    from stackllama_engine.contract.run_dir import RunDir
    from stackllama_engine.train import models, tokenizing
    from stackllama_engine.train.encoding import Encoder
    from stackllama_engine.train.stage_rows import pair

    disable_progress_bars()
    tokenizing.KEPT_FROM = min(tokenizing.KEPT_FROM, options.pairs)
    encoder = Encoder(models.load_tokenizer(str(DEMO_BASE)), PromptFormat())

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        chosen, rejected = pair(encoder, row)
        return {"chosen_ids": chosen, "rejected_ids": rejected}

    everything = Dataset.from_list(_pairs(options.pairs))
    some = everything.select(range(min(options.row_by_row, options.pairs)))

    def row_by_row(_: str) -> Dataset:
        return some.map(encode, remove_columns=some.column_names, load_from_cache_file=False)

    def in_batches(run: str) -> Dataset:
        (folder / run / "cache").mkdir(parents=True)
        together = tokenizing.BatchTokenizing(encoder, RunDir(folder / run), "reward")
        return together(everything, encode)

    differ = False
    print("| | pairs | s | processor s |\n|---|---|---|---|", flush=True)
    for number in range(options.rounds):
        shutil.rmtree(folder / "stackllama", ignore_errors=True)  # what the round before kept
        alone = _timed("row by row", row_by_row, f"alone-{number}")
        made = _timed(f"in batches, {threads} threads", in_batches, f"made-{number}")
        kept = _timed("kept by an earlier run", in_batches, f"kept-{number}")
        differ |= alone[:] != made[: len(alone)] or made[-1] != kept[-1]
        sides = mean(len(ids) for name in made.column_names for ids in made[:1000][name])
        print(f"{sides:.0f} tokens per side{'; **batches differ from rows**' if differ else ''}", flush=True)
    return int(differ)


def _timed(name: str, tokenise: Callable[[str], Any], run: str) -> Any:
    """Tokenise, print what it took, and return the result."""
    began, worked = time.perf_counter(), time.process_time()
    result = tokenise(run)
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    print(f"| {name} | {len(result):,} | {seconds:.1f} | {processor:.1f} |", flush=True)
    return result


def _pairs(count: int) -> list[dict[str, str]]:
    posts = itertools.islice(demo_data.generate("finetune"), 500)
    words = sorted({word for post in posts for word in post["response_j"].split()})
    draw = random.Random(0)

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length))

    return [
        {"question": text(_QUESTION), "response_j": text(_ANSWER), "response_k": text(_ANSWER)} for _ in range(count)
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Seconds that pairs take to be tokenised.")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--row-by-row", type=int, default=10_000, help="how many of them are tokenised one by one")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="some pairs: whether it runs")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.pairs, options.row_by_row, options.rounds = 300, 50, 1
    return options


if __name__ == "__main__":
    sys.exit(main())
