"""The demo's results in README.md and docs/results.md: recorded by running it, and written from the recording alone.

    python scripts/demo_results.py record     # before a release: seeds 0-4 on all held-out questions, half an hour
    python scripts/demo_results.py write      # both documents, from docs/measurements/demo.json
    python scripts/demo_results.py record --tiny   # one demo of two steps per stage; no file is changed

``record`` runs ``stackllama-console demo`` as a newcomer does (seed 0), then every seed with all 661 held-out questions
and best-of-16. The recording says of which data, base and recipe it is; a test compares that with today's, and the
documents with the recording.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDING = ROOT / "docs" / "measurements" / "demo.json"
DEMO_BASE = ROOT / "engine" / "stackllama_engine" / "demo_base"
SEEDS = (0, 1, 2, 3, 4)
TUNED = (0,)
"""Seeds that values of the recipe were chosen on."""
SMALL = (
    *(f"{stage}.max_steps=2" for stage in ("sft", "reward", "ppo")),
    "ppo.max_eval_samples=8",
    "ppo.eval_best_of=[4]",
)
EVERYTHING = ("ppo.max_eval_samples=null", "ppo.eval_best_of=[4, 16]")
MARKS = ("<!-- {}: written by scripts/demo_results.py -->\n", "<!-- end of {} -->\n")
_CELLS = (("score", 2), ("kl", 2), ("true_utility", 3), ("win_rate", 2))


def fingerprint() -> str:
    """Return the SHA-256 of the demo's data, base and recipe."""
    from stackllama_engine.data import demo_data

    digest = hashlib.sha256()
    for split in ("finetune", "reward", "rl", "evaluation"):
        digest.update(json.dumps(list(demo_data.generate(split))[:300]).encode())
    for name in ("model.safetensors", "tokenizer.json", "demo.yaml"):
        digest.update((DEMO_BASE / name).read_bytes())
    return digest.hexdigest()


def record(home: Path, seeds: tuple[int, ...], *, tiny: bool = False) -> dict[str, Any]:
    """Run everything; two seeds at a time, each with one thread, after the newcomer's run.

    The tiny form runs one demo, whose facts stand for those of the seed as well.
    """
    plain = _demo(home, "plain", {}, "--seed", "0", *(SMALL if tiny else ()))

    def whole(seed: int) -> dict[str, Any]:
        if tiny:
            return plain
        return _demo(home, f"seed-{seed}", {"OMP_NUM_THREADS": "1"}, "--seed", str(seed), *EVERYTHING)

    with ThreadPoolExecutor(2) as pool:
        by_seed = dict(zip(map(str, seeds), pool.map(whole, seeds), strict=True))
    return {
        "fingerprint": fingerprint(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        "plain": plain,
        "seeds": by_seed,
    }


def _demo(home: Path, name: str, environment: dict[str, str], *words: str) -> dict[str, Any]:
    """Run a demo, and return the facts that ``--json`` prints, without those that say where it ran."""
    program = Path(sys.executable).with_name("stackllama-console")
    command = [str(program), "demo", "--plain", "--json", "--home", str(home / name), *words]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    facts: dict[str, Any] = json.loads(done.stdout)
    stages = {key: value for key, value in facts.items() if isinstance(value, dict)}
    for child in stages.values():
        for key in ("run", "path", "directory"):
            child.pop(key, None)
    return _rounded(stages | {"seconds": facts["seconds"]})


def _rounded(value: Any) -> Any:
    """Return it with floats of six significant digits."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {key: _rounded(inner) for key, inner in value.items()}
        case list():
            return [_rounded(inner) for inner in value]
        case _:
            return value


def blocks(recording: dict[str, Any]) -> dict[str, str]:
    """Return the generated parts of the documents, by name."""
    from stackllama_console.results import sample_lines, table

    plain = recording["plain"]
    screen = "\n".join([*table(plain), "", *sample_lines(plain)])
    seeds = {int(seed): facts for seed, facts in recording["seeds"].items()}
    fresh = [facts["ppo"]["comparison"] for seed, facts in seeds.items() if seed not in TUNED]
    return {
        "demo run": f"```\n{screen}\n```\n",
        "demo table": _means(fresh) + f"\n{_machine(recording)}\n",
        "demo seeds": _by_seed(seeds),
    }


def _machine(recording: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in recording["versions"].items())
    return f"Recorded {recording['date']}: {recording['machine']}; {packages}."


def _means(tables: list[list[dict[str, Any]]]) -> str:
    """Return one row per variant, means over seeds; the error holds the spread over questions and over seeds."""
    from stackllama_engine.contract.metrics import label_of, short_of
    from stackllama_engine.contract.stages import Stage

    labels = {key: label_of(Stage.PPO, key) for key, _ in _CELLS} | {"kl": short_of(Stage.PPO, "kl")}
    lines = [f"| | {' | '.join(labels.values())} |", "|---|---|---|---|---|"]
    for rows in zip(*(_without_step(table) for table in tables), strict=True):
        cells = [
            _cell(_over_seeds(rows, key), digits, bound="kl_is_bound" in rows[0] and key == "kl")
            for key, digits in _CELLS
        ]
        lines.append(f"| {rows[0]['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _without_step(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table with the best evaluation's row under a name that is the same for every seed."""
    return [row | ({"name": "PPO, T = 1, best evaluation"} if "step" in row else {}) for row in table]


def _over_seeds(rows: tuple[dict[str, Any], ...], key: str) -> tuple[float, float] | None:
    if key not in rows[0]:
        return None
    values, count = [row[key] for row in rows], len(rows)
    mean = sum(values) / count
    between = sum((value - mean) ** 2 for value in values) / max(1, count - 1)
    within = sum(row.get(f"{key}_se", 0.0) ** 2 for row in rows) / count
    return mean, math.sqrt((between + within) / count)


def _cell(value: tuple[float, float] | None, digits: int, *, bound: bool) -> str:
    if value is None:
        return ""
    mean, error = value
    return f"≤ {mean:.{digits}f}" if bound else f"{round(mean, digits) + 0.0:.{digits}f} ± {error:.{digits}f}"


def _by_seed(seeds: dict[int, dict[str, Any]]) -> str:
    head = (
        "seed",
        "SFT eval loss",
        "reward accuracy",
        "base utility",
        "base greedy",
        "best of 4",
        "PPO score",
        "KL",
        "utility",
        "greedy utility",
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for seed, facts in seeds.items():
        row = {row["name"] if "step" not in row else "best": row for row in facts["ppo"]["comparison"]}
        cells = [
            f"{seed}{' (tuned on)' if seed in TUNED else ''}",
            f"{facts['sft']['eval_loss']:.3f}",
            f"{facts['reward']['accuracy']:.3f}",
            *(
                _cell((row[name][key], row[name][f"{key}_se"]), digits, bound=False)
                for name, key, digits in (
                    ("base, T = 1", "true_utility", 3),
                    ("base, greedy", "true_utility", 3),
                    ("base, T = 1, best of 4", "true_utility", 3),
                    ("PPO, T = 1", "score", 2),
                    ("PPO, T = 1", "kl", 2),
                    ("PPO, T = 1", "true_utility", 3),
                    ("PPO, greedy", "true_utility", 3),
                )
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def documents() -> list[Path]:
    """Return the documents with generated parts."""
    return [ROOT / "README.md", ROOT / "docs" / "results.md"]


def written(text: str, parts: dict[str, str]) -> str:
    """Return a document's text with its generated parts as they should be."""
    for name, part in parts.items():
        begin, end = (mark.format(name) for mark in MARKS)
        if begin in text:
            before, _, rest = text.partition(begin)
            text = before + begin + part + end + rest.partition(end)[2]
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Record the demo's results, or write them into the documents."""
    parser = argparse.ArgumentParser(description="Record the demo's results, or write them into the documents.")
    parser.add_argument("what", choices=("record", "write"))
    parser.add_argument("--home", type=Path, help="where the runs go; else a directory that is removed")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--tiny", action="store_true", help="one demo of two steps per stage; no file is changed")
    options = parser.parse_args(arguments)
    recording = json.loads(RECORDING.read_text(encoding="utf-8"))
    if options.what == "record":
        with tempfile.TemporaryDirectory() as folder:
            seeds = (1,) if options.tiny else tuple(options.seeds)  # one that the recipe was not tuned on
            recording = record(options.home or Path(folder), seeds, tiny=options.tiny)
        if not options.tiny:
            RECORDING.write_text(json.dumps(recording, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    parts = blocks(recording)
    for path in documents():
        text = written(path.read_text(encoding="utf-8"), parts)
        if options.tiny:
            sys.stdout.write(f"{path.name}: {len(text)} characters\n")
        else:
            path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
