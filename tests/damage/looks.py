"""Commands and screen reads that the trials run on a damaged home."""

import contextlib
import random
from collections.abc import Callable
from typing import Any

from stackllama_console.readers.choices import run_choices
from stackllama_console.readers.comparison import Comparison
from stackllama_console.readers.comparison_rows import metric_rows, recipe_rows
from stackllama_console.readers.draft import read_run
from stackllama_console.readers.logs import LogReader
from stackllama_console.readers.run_reader import RunReader
from stackllama_console.readers.runs_index import RunsIndex
from stackllama_console.readers.samples import SamplesFile
from stackllama_console.tui.run_keys import advice_of_run
from stackllama_console.tui.watched import watch_run
from stackllama_console.tui.widgets.outcome import advice
from stackllama_engine.contract.chat_target import find_target
from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

COMMANDS = """\
ls
ls --json
ls --stage sft
show
show RUN
show RUN --json
logs RUN
logs RUN -n 2
logs RUN --attempt 1
stop RUN --no-wait
stop RUN --no-wait --json
verify RUN
verify RUN --json
repair RUN
repair RUN --json
rm RUN
rm RUN --yes
rm --leftovers
resume RUN
resume RUN --recipe-changed --json
""".splitlines()
OF_ENDED = ["watch RUN", "watch RUN --json", "watch RUN --plain", "logs RUN -f"]
"""Commands that follow a run to its end."""
OF_ALIVE = ["save RUN", "sample RUN", "pause RUN", "continue RUN", "set RUN learning_rate=1e-4"]
ELSEWHERE = [
    "launch merge adapter_path=RUN --dry-run",
    "plan merge adapter_path=RUN",
    "launch ppo model_name_or_path=demo dataset_name=demo reward_model_path=RUN --dry-run",
    "launch sft model_name_or_path=demo dataset_name=demo --name RUN --dry-run",
]
"""Commands that take a run as input, or use its name."""


def command(rng: random.Random, run_id: str, *, ended: bool) -> list[str]:
    """Choose a command on a run."""
    if rng.random() < 0.06:
        text = rng.choice(ELSEWHERE)
    else:
        text = f"runs {rng.choice([*COMMANDS, *(OF_ENDED if ended else OF_ALIVE * 3)])}"
    return [word.replace("RUN", run_id) for word in text.split()]


def _index(home: Home, run_id: str) -> Any:
    index = RunsIndex(home)
    index.poll()
    index.poll()
    return [(row, advice_of_run(row.stage, row.phase), row.age(2e9)) for row in index.rows]


def _reader(home: Home, run_id: str) -> Any:
    reader = RunReader(RunDir(home.runs_dir / run_id))
    reader.poll()
    reader.poll()
    for series in [*reader.series.values(), *reader.memory.values()]:
        if len(series):
            series.columns(0, 10, 20)
            series.smoothed(0.5)
    seen = (
        reader.state,
        reader.error,
        reader.notices,
        reader.bad_lines,
    )
    return seen, reader.eta(2e9), advice(reader.run, reader.state) if reader.state else ""


def _log(home: Home, run_id: str) -> Any:
    log = LogReader(RunDir(home.runs_dir / run_id))
    log.poll()
    log.poll()
    return log.lines, log.error, log.open_line


def _samples(home: Home, run_id: str) -> Any:
    samples = SamplesFile(RunDir(home.runs_dir / run_id).samples_file)
    samples.poll()
    samples.poll()
    orders = [samples.order(key, descending=True) for key in ("step", "reward", "kl", "length")]
    found = samples.search("because"), samples.pairs(), samples.read(range(len(samples)))
    return orders, found, samples.error, samples.of_prompt(0) if len(samples) else None


def _compare(home: Home, run_id: str) -> Any:
    compared = Comparison(home, ["whole", run_id, "ppo"])
    compared.poll()
    compared.poll()
    return compared.metrics(), compared.errors, recipe_rows(compared), metric_rows(compared, compared.metrics())


def _watched(home: Home, run_id: str) -> Any:
    watched = watch_run(home, run_id)
    watched.poll()
    watched.poll()
    return watched.result, watched.evaluation, watched.newest_samples, watched.predicted, watched.reader.history


def _choices(home: Home, run_id: str) -> Any:
    return run_choices(home, list(Stage))


def _draft(home: Home, run_id: str) -> Any:
    return read_run(home, run_id)


def _chat(home: Home, run_id: str) -> Any:
    return find_target(home.run(run_id)), find_target(home.run(run_id), "2")


SCREENS: dict[str, Callable[[Home, str], Any]] = {
    "runs": _index,
    "monitor": _reader,
    "log": _log,
    "samples": _samples,
    "compare": _compare,
    "watched": _watched,
    "choices": _choices,
    "launch form": _draft,
    "chat": _chat,
}


def look(screen: str, home: Home, run_id: str) -> None:
    """Read what a screen reads; errors that it would render as a sentence are expected."""
    with contextlib.suppress(StackllamaError):
        repr(SCREENS[screen](home, run_id))
