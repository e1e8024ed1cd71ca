"""A home of invented runs for the pictures of the screens: nothing is trained, every curve and text is made up here.

`Clock` moves only where a line moves it, so that every picture of a home is the same.
"""

import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import json as msgspec_json
from msgspec import structs

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.llama_7b import LLAMA_7B  # noqa: E402 - found by the line above

from stackllama_engine.contract.base import DEMO_BASE  # noqa: E402

POLICY, REWARD = "huggyllama/llama-7b", "your-lab/reward-7b"
"""Models of seven billion parameters in the cache of Hugging Face; their weights are holes in files."""
NOW = 1_772_460_000.0
"""2026-03-02, 14:00 UTC."""
HOST = "gpu-box"
_PAIRS = (
    (
        "How do I undo the last commit without losing my work?",
        "You can delete it. Commits are deleted with a command, and the command deletes commits.",
        "Run `git reset --soft HEAD~1`: the commit goes, its changes stay staged. If it was pushed, use `git revert`.",
    ),
    (
        "What helps to find the commit that broke a test?",
        "Look at the commits and the test, and then at the other commits.",
        "Try `git bisect`, because it halves the search each time: name one good and one bad commit, then let it run.",
    ),
    (
        "Why is my Python loop over a million rows so slow?",
        "Python is a language. Loops are slow because they are loops.",
        "Each row pays for the interpreter. Let NumPy or pandas work on whole columns: it is often 50 times as fast.",
    ),
    (
        "How can I see which process holds port 8080?",
        "The port is held by a process. You can see it.",
        "`ss -ltnp 'sport = :8080'` names the process and its pid; without root it shows your own processes alone.",
    ),
)
"""Prompt, a response before PPO, one after it."""


def make_model(cache: Path, name: str, kind: str) -> None:
    """Write a model of LLaMA-7B's shape, without contents, into the cache of Hugging Face."""
    commit = "0" * 40
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text(json.dumps({"architectures": [kind], **LLAMA_7B}))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_BASE / file, snapshot)
    size = 2 * 6_738_415_616
    header = json.dumps({"model.weight": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with (snapshot / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


class Clock:
    """Unix seconds, in the place of ``time.time``."""

    def __init__(self) -> None:
        self.now = NOW

    def install(self) -> None:
        """Take the place of the real clock; time zone UTC."""
        os.environ["TZ"] = "UTC"
        time.tzset()
        time.time = lambda: self.now


class PictureHome:
    """Writes the runs.

    Args:
        path: of the home; it must not exist.
        clock: is moved while runs are written, and stands at `NOW` afterwards.
        gpus: how many GPUs the running run has.
    """

    def __init__(self, path: Path, clock: Clock, gpus: int) -> None:
        from stackllama_engine.contract.run_dir import Home

        self.home = Home(path)
        self.clock = clock
        self.gpus = gpus
        self.locks: list[int] = []
        """File descriptors; close them to let go of the runs that seem to be running."""

    def fill(self, foreign: Path) -> None:
        """Write every run, and another trainer's directory."""
        self._pipeline("math", NOW - 26 * 3600)
        self._failed("sft-7b-lr3", NOW - 5 * 3600)
        self._stopped("reward-large", NOW - 3 * 3600)
        self._running("ppo-kl-0.1", NOW - 4210)
        self._queued("dpo-short", NOW - 600)
        self._foreign(foreign)
        self.clock.now = NOW

    def _create(self, stage: str, name: str, created: float, *words: str, parents: Sequence[str] = ()) -> Any:
        from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
        from stackllama_engine.contract.run_dir import Launch, State
        from stackllama_engine.contract.stages import Stage

        self.clock.now = created
        kind = Stage(stage)
        run = self.home.create(kind, dump_recipe(load_recipe(kind, None, list(words))), name)
        run.attempt_dir(1).mkdir(mode=0o700)
        run.write_launch(Launch(argv=[], cwd="/", host=HOST, created=created, parents=list(parents)))
        run.write_state(State(stage=kind, phase="running", attempt=1, created=created, started=created + 6))
        return run

    def _end(self, run: Any, phase: str, **facts: Any) -> None:
        run.write_state(structs.replace(run.read_state(), phase=phase, ended=self.clock.now, **facts))

    def _log(self, run: Any, lines: Sequence[str]) -> None:
        (run.attempt_dir(1) / "log.txt").write_text("".join(f"{line}\n" for line in lines))

    def _train(self, run: Any, curves: dict[str, list[float]], total: int, pace: float, memory: float) -> None:
        """Write events: a metric per step, at so many seconds per step."""
        from stackllama_engine.contract.events import EventWriter

        events = EventWriter(run.attempt_dir(1) / "events.jsonl")
        events.write("phase", phase="load")
        events.write("phase", phase="train")
        for index in range(max(map(len, curves.values()))):
            self.clock.now += pace
            values = {name: column[index] for name, column in curves.items() if index < len(column)}
            events.write("metrics", step=index + 1, metrics=values)
            events.write("progress", step=index + 1, total_steps=total)
            if index % 10 == 9:
                peak = memory * (1 << 30) * (0.97 + 0.03 * min(1.0, index / 40))
                metrics = {"allocated": peak, "reserved": peak * 1.06} if self.gpus else {"rss": peak}
                events.write("memory", step=index + 1, phase="train", metrics=metrics)
        events.close()

    def _pipeline(self, name: str, created: float) -> None:
        words = ("model_name_or_path=demo", "dataset_name=demo")
        pipeline = self._create("pipeline", name, created, *words)
        moment = created + 12
        for suffix, curves, steps, pace, result in _stages():
            stage = "merge" if suffix.endswith("merged") else suffix
            own = {"merge": ("adapter_path=demo",), "ppo": (*words, "reward_model_path=demo")}.get(stage, words)
            run = self._create(stage, f"{name}-{suffix}", moment, *own, parents=[name])
            self.clock.now = moment + 6
            if curves:
                self._train(run, curves, steps, pace, 0.9)
            self.clock.now += 8
            self._log(run, _log_of(stage))
            run.write_json("result.json", {"stage": stage, **result})
            if stage == "merge":
                shutil.copytree(DEMO_BASE, run.merged)
            else:
                run.adapter.mkdir()
            if stage == "ppo":
                self._samples(run, steps)
            self._end(run, "finished", exit_code=0)
            moment = self.clock.now + 4
        self._end(pipeline, "finished", exit_code=0)

    def _samples(self, run: Any, steps: int) -> None:
        rows: list[dict[str, Any]] = []
        for step in range(0, steps + 1, 5):
            for index, (question, before, after) in enumerate(_PAIRS):
                late = step >= steps // 2
                response = after if late else before
                reward = -2.1 + 4.4 * step / steps + 0.3 * math.sin(step + index)
                facts = {"reward": reward, "score": reward, "kl": 0.05 * step, "length": len(response.split())}
                rows.append({"step": step, "question": question, "response": response, "ended": True, **facts})
        run.samples_file.write_bytes(b"".join(msgspec_json.encode(row) + b"\n" for row in rows))

    def _failed(self, name: str, created: float) -> None:
        words = (
            f"model_name_or_path={POLICY}",
            "dataset_name=demo",
            "learning_rate=3e-3",
            "per_device_train_batch_size=16",
        )
        run = self._create("sft", name, created, *words)
        noise = _noise(3)
        loss = [2.6 * math.exp(-step / 30) + 1.4 + noise.uniform(-0.08, 0.08) for step in range(80)]
        rate = [3e-3 * min(1.0, step / 20) for step in range(80)]
        self._train(run, {"loss": loss, "learning_rate": rate}, 400, 6.5, 128.0)
        self._log(
            run, [*_log_of("sft"), "Traceback (most recent call last):", "torch.OutOfMemoryError: CUDA out of memory."]
        )
        cause = (
            "Out of memory in phase train, step 80: the longest rows of the data came together. "
            "`per_device_train_batch_size=4` would have fitted."
        )
        lines = ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.91 GiB."]
        self._end(run, "failed", exit_code=1, cause=cause, last_lines=lines)

    def _stopped(self, name: str, created: float) -> None:
        run = self._create("reward", name, created, f"model_name_or_path={POLICY}", "dataset_name=demo")
        self._train(run, _reward_curves(140), 600, 2.1, 31.0)
        self._log(run, _log_of("reward"))
        self._end(run, "stopped", exit_code=75)

    def _running(self, name: str, created: float) -> None:
        words = (f"model_name_or_path={POLICY}", "dataset_name=demo", f"reward_model_path={REWARD}", "kl_coef=0.1")
        run = self._create("ppo", name, created, *words)
        steps = 210
        self._train(run, _ppo_curves(steps, 0.1), 400, 20.0, 41.2)
        self._log(
            run, [f"INFO step {step}: 128 responses, reward {-2 + step / 60:.2f}" for step in range(1, steps + 1)]
        )
        self._samples(run, 200)
        if self.gpus:
            self._gpu_metrics(run, steps)
        self.locks.append(run.acquire_lock())

    def _gpu_metrics(self, run: Any, steps: int) -> None:
        from stackllama_engine.contract.events import EventWriter
        from stackllama_engine.contract.gpu_metrics import GPU_FILE, gpu_metric

        gpus = EventWriter(run.attempt_dir(1) / GPU_FILE)
        for step in range(1, steps + 1):
            for part, busy in ((0.0, 93.0), (0.3, 95.0), (0.6, 91.0)):
                rates = {gpu_metric(index, "utilization"): busy - 2.5 * index for index in range(self.gpus)}
                watts = {gpu_metric(index, "power"): 300 + 3.5 * busy - 20 * index for index in range(self.gpus)}
                gpus.write("metrics", step=step, metrics=rates | watts, data={"position": step + part})
        gpus.close()

    def _queued(self, name: str, created: float) -> None:
        run = self._create("preference", name, created, f"model_name_or_path={POLICY}", "dataset_name=demo")
        state = run.read_state()
        run.write_state(structs.replace(state, phase="queued", started=None, waiting="waiting for ppo-kl-0.1 to end"))
        self.locks.append(run.acquire_lock())

    def _foreign(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        noise = _noise(5)
        rows = [
            {"current_steps": step, "total_steps": 500, "loss": round(1.9 * math.exp(-step / 150) + 0.8, 4), "lr": 2e-5}
            | {
                "elapsed_time": f"0:{step * 4 // 60:02d}:{step * 4 % 60:02d}",
                "grad_norm": round(noise.uniform(0.6, 1.4), 3),
            }
            for step in range(10, 360, 10)
        ]
        log = folder / "trainer_log.jsonl"
        log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        last = NOW - 3.4 * 86400
        os.utime(log, (last, last))


def _noise(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - curves, no secrets


def _stages() -> list[tuple[str, dict[str, list[float]], int, float, dict[str, Any]]]:
    """Return the stages of a pipeline: suffix, curves, steps, seconds per step, result."""
    noise = _noise(1)
    loss = [2.5 * math.exp(-step / 14) + 1.2 + noise.uniform(-0.06, 0.06) for step in range(70)]
    rate = [1e-4 * (1 - step / 70) for step in range(70)]
    merged = {"difference": 7.7e-7, "verified": True, "dtype": "float32", "seconds": 3.8}
    after = [{"reward_before": -1.9, "reward_after": 2.3, "question": q, "before": b, "after": a} for q, b, a in _PAIRS]
    ppo = {
        "before": {"mean_reward": -3.766, "kl": -3.7e-8, "response_length": 13.3, "questions": 128},
        "after": {"mean_reward": 3.34, "kl": 1.52, "response_length": 14.5, "questions": 128},
        "steps": 60,
        "temperature": 1.0,
        "samples": after,
    }
    sft = {"loss_first": 3.7, "loss_last": 1.227, "eval_loss": 1.156, "steps": 70, "tokens": 275605, "seconds": 40.4}
    reward = {"accuracy": 0.93, "margin": 7.92, "loss": 0.174, "pairs": 600, "ties": 0, "steps": 300, "seconds": 65.2}
    return [
        ("sft", {"loss": loss, "learning_rate": rate}, 70, 0.6, sft),
        ("sft-merged", {}, 0, 0.0, merged),
        ("reward", _reward_curves(300), 300, 0.22, reward),
        ("reward-merged", {}, 0, 0.0, merged),
        ("ppo", _ppo_curves(60, 0.05), 60, 1.8, ppo),
        ("ppo-merged", {}, 0, 0.0, merged),
    ]


def _reward_curves(steps: int) -> dict[str, list[float]]:
    noise = _noise(2)
    share = [1 - math.exp(-step / (steps / 4)) for step in range(steps)]
    return {
        "loss": [0.69 - 0.45 * part + noise.uniform(-0.03, 0.03) for part in share],
        "accuracy": [0.5 + 0.42 * part + noise.uniform(-0.04, 0.04) for part in share],
        "learning_rate": [2e-5 * (1 - step / steps) for step in range(steps)],
    }


def _ppo_curves(steps: int, kl_coef: float) -> dict[str, list[float]]:
    noise = _noise(round(kl_coef * 100))

    def around(value: float, width: float) -> float:
        return value + noise.uniform(-width, width)

    share = [1 - math.exp(-step / (steps / 3)) for step in range(steps)]
    return {
        "objective/scores": [around(-3.6 + 6.4 * part, 0.35) for part in share],
        "objective/kl": [around((0.16 / kl_coef) * part, 0.05) for part in share],
        "objective/rlhf_reward": [around(-3.6 + 6.1 * part, 0.35) for part in share],
        "policy/entropy_avg": [around(2.4 - 1.1 * part, 0.06) for part in share],
        "policy/clipfrac_avg": [around(0.12 - 0.05 * part, 0.012) for part in share],
        "loss/value_avg": [around(1.6 * math.exp(-3 * part) + 0.2, 0.03) for part in share],
        "val/ratio": [around(1.0, 0.004) for _ in share],
        "grad_norm": [around(1.1, 0.25) for _ in share],
        "learning_rate": [1.4e-5 * (1 - step / steps / 2) for step in range(steps)],
        "eval/mean_reward": [],
    }


def _log_of(stage: str) -> list[str]:
    lines = {
        "sft": ["INFO reading weights", "INFO tokenizing 12,000 rows", "WARNING 31 rows are longer than 512 tokens"],
        "reward": ["INFO reading weights", "INFO tokenizing 6,600 pairs", "INFO 600 held-out pairs"],
        "ppo": ["INFO prompt format: question_answer", "INFO 3,389 prompts repeat an earlier one and are dropped"],
        "merge": ["INFO reading weights", "INFO merged in 3.8 s", "INFO verified on 8 prompts"],
    }[stage]
    steps = [f"INFO step {step}: loss {2.5 * math.exp(-step / 14) + 1.2:.3f}" for step in range(10, 71, 10)]
    return [*lines, *(steps if stage != "merge" else [])]


def chat() -> None:
    """Answer the questions of the chat's picture, as the process that generates does."""

    def say(**fields: Any) -> None:
        sys.stdout.write(f"{json.dumps(fields)}\n")
        sys.stdout.flush()

    say(ready=True, sides=["base", "tuned"], model="demo", checkpoint="step-000060", rewards=True)
    texts = {question: {"base": before, "tuned": after} for question, before, after in _PAIRS}
    for line in sys.stdin:
        ask = json.loads(line)
        for which in ask.get("which", []):
            text = texts.get(ask["prompt"], {}).get(which, "…")
            say(id=ask["id"], which=which, text=text)
            reward = 2.31 if which == "tuned" else -1.87
            count = len(text.split())
            say(id=ask["id"], which=which, done=True, tokens=count, seconds=0.5, ended=True, reward=reward)


if __name__ == "__main__":
    chat()
