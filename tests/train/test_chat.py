"""The generator on toy runs made by hand, as a process and in this one; its answers are transformers' own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from stackllama_engine.contract import threads as contract_threads
from stackllama_engine.contract.chat_messages import Ask, Delta, Done, Failure, Reply, Side
from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.contract.recipe import SFTRecipe
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.chat_process import chat_command
from stackllama_engine.train import checkpoint, models
from stackllama_engine.train.chat import __main__ as chat
from stackllama_engine.train.chat.answer import Text, messages_of
from stackllama_engine.train.encoding import Encoder

from .toy import PPO, SFT, make_base, make_reward_model

QUESTION = "How do I boil an egg properly?"
PATIENCE = 120.0


class Generator:
    """The real process; lines in and out as they are."""

    def __init__(self, run: RunDir, name: str | None = None) -> None:
        argv, environment = chat_command(run, name, cpu=True)
        self.process = subprocess.Popen(
            argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def send(self, *requests: dict[str, Any] | bytes) -> None:
        assert self.process.stdin
        for request in requests:
            self.process.stdin.write(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def line(self) -> dict[str, Any]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def answer(self, question: int, side: str) -> tuple[str, dict[str, Any]]:
        """Return the text of a side, and its last line."""
        text = ""
        while "done" not in (line := self.line()):
            assert (line["id"], line["which"]) == (question, side), line
            text += line["text"]
        assert (line["id"], line["which"]) == (question, side)
        return text, line

    def ended(self) -> int:
        return self.process.wait(PATIENCE)


class Here:
    """What the process does with a run and its questions, without the process."""

    def __init__(self, run: RunDir, name: str | None = None) -> None:
        self._sides, self._score, self.ready = chat._load(run, name, cpu=True)
        self._said: list[Reply] = []

    def ask(self, *sides: Side, system: str | None = None) -> list[Reply]:
        """Greedy answers of some sides; all that is said."""
        self._said.clear()
        inbox, outbox = SimpleNamespace(cancelled=lambda _: False), SimpleNamespace(write=self._said.append)
        question = Ask(id=1, prompt=QUESTION, which=[*sides], temperature=0, max_new_tokens=24, system=system)
        chat._answer(self._sides, self._score, question, inbox, outbox)  # type: ignore[arg-type]
        return self._said

    def greedy(self, *sides: Side) -> list[str]:
        said = self.ask(*sides)
        assert [one.which for one in said if isinstance(one, Done)] == [*sides]
        return ["".join(one.text for one in said if isinstance(one, Delta) and one.which == side) for side in sides]


Begin = Callable[..., Generator]


@pytest.fixture
def begin() -> Iterator[Begin]:
    started: list[Generator] = []

    def start(run: RunDir, name: str | None = None) -> Generator:
        started.append(Generator(run, name))
        return started[-1]

    yield start
    for generator in started:
        generator.process.kill()
        generator.process.wait(PATIENCE)
        for pipe in (generator.process.stdin, generator.process.stdout):
            assert pipe
            with contextlib.suppress(BrokenPipeError):  # what it never read
                pipe.close()


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an adapter that changes much, beside the identity of its base."""
    recipe = load_recipe(Stage.SFT, None, (f"model_name_or_path={base}", *SFT, "lora_r=4"))
    assert isinstance(recipe, SFTRecipe)
    torch.manual_seed(3)
    config = models.lora_config(recipe, "CAUSAL_LM", "llama")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    path = tmp_path_factory.mktemp("adapter") / "adapter"
    models.save_adapter(model, models.load_tokenizer(str(base)), path, recipe, PromptFormat())
    return path


@pytest.fixture
def make(tmp_path: Path, base: Path) -> Callable[..., RunDir]:
    def run(stage: Stage, *overrides: str, phase: str = "finished") -> RunDir:
        common = {
            Stage.SFT: (f"model_name_or_path={base}", *SFT, "lora_r=4"),
            Stage.PPO: (f"model_name_or_path={base}", "reward_model_path=x", *PPO, "lora_r=4"),
            Stage.MERGE: (),
        }[stage]
        made = Home(tmp_path).create(stage, dump_recipe(load_recipe(stage, None, (*common, *overrides))))
        made.write_state(State(stage=stage, phase=phase))  # type: ignore[arg-type]
        return made

    return run


def expected(base: Path, adapter: Path | None, count: int) -> str:
    """Generate greedily with transformers itself."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    model = PeftModel.from_pretrained(model, str(adapter)).eval() if adapter else model
    ids = tokenizer(PromptFormat().render(QUESTION), return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=count, do_sample=False, use_cache=False)
    return tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).lstrip()


def greedy(generator: Generator, question: int = 1, sides: tuple[str, ...] = ("base", "tuned")) -> list[str]:
    generator.send({"id": question, "prompt": QUESTION, "which": list(sides), "temperature": 0, "max_new_tokens": 24})
    return [generator.answer(question, side)[0] for side in sides]


@pytest.mark.parametrize(("small_base", "threads"), [(contract_threads.SMALL_BASE, 1), (0, 8)])
def test_a_chat_on_the_cpu_has_the_threads_of_its_base(
    adapter: Path, make: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch, small_base: int, threads: int
) -> None:
    run = make(Stage.SFT)
    shutil.copytree(adapter, run.adapter)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(contract_threads, "SMALL_BASE", small_base)
    monkeypatch.setattr(contract_threads, "usable_cores", lambda _: 64)
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    Here(run)
    assert given == [threads]


@pytest.mark.slow
def test_base_and_tuned_answer_as_transformers_would(
    base: Path, adapter: Path, make: Callable[..., RunDir], begin: Begin
) -> None:
    run = make(Stage.SFT)
    shutil.copytree(adapter, run.adapter)
    generator = begin(run)
    ready = generator.line()
    assert ready == {
        "ready": True,
        "sides": ["base", "tuned"],
        "model": str(base),
        "checkpoint": None,
        "device": "cpu",
        "note": None,
        "prompt_format": "question_answer",
        "system": None,
        "rewards": False,
        "functions": False,
    }
    both = [expected(base, None, 24), expected(base, adapter, 24)]
    assert both[0] != both[1]
    assert greedy(generator) == both
    assert greedy(generator, 2, ("tuned", "base")) == both[::-1]  # the adapter is off only while the base answers

    sampled = {"prompt": QUESTION, "which": ["tuned"], "max_new_tokens": 24}
    generator.send(*({"id": number, **sampled, "seed": seed} for number, seed in ((3, 5), (4, 5), (5, 6))))
    texts = [generator.answer(number, "tuned")[0] for number in (3, 4, 5)]
    assert texts[0] == texts[1] != texts[2]

    # what is wrong with a request is said to it, and the next one is answered
    generator.send(b"nonsense\n", {"id": 6, "prompt": 3}, {"id": 7, "prompt": "long " * 600})
    assert generator.line()["error"].startswith("not a request")
    assert generator.line()["id"] == 6
    refused = generator.line()
    assert refused["id"] == 7 and "the model takes 512" in refused["error"]
    assert greedy(generator, 8) == both

    # a cancelled question's sides are still done, and so are those that waited behind it
    endless = {"prompt": QUESTION, "max_new_tokens": 400, "seed": 1}
    generator.send({"id": 9, **endless}, {"id": 10, **endless})
    assert generator.line()["id"] == 9
    generator.send({"cancel": 10}, {"cancel": 9}, {"cancel": 77})
    done: list[dict[str, Any]] = []
    while len(done) < 4:
        done += [line] if "done" in (line := generator.line()) else []
    assert [(line["id"], line["which"]) for line in done] == [(n, side) for n in (9, 10) for side in ("base", "tuned")]
    assert [(line["cancelled"], line["tokens"]) for line in done[2:]] == [(True, 0)] * 2
    assert done[1]["cancelled"]

    generator.send({"id": 11, **endless})
    assert generator.line()["id"] == 11
    assert generator.process.stdin
    generator.process.stdin.close()  # whoever asked is gone, in the middle of an answer
    assert generator.ended() == 0


@pytest.mark.slow
def test_chat_with_a_ppo_checkpoint(base: Path, adapter: Path, make: Callable[..., RunDir]) -> None:
    run = make(Stage.PPO, phase="running")
    staging = checkpoint.staging_dir(run.checkpoints, 3)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    save_file(
        {name: t.contiguous() for name, t in get_peft_model_state_dict(model).items()}, staging / "policy.safetensors"
    )
    sealed = checkpoint.seal(staging, run.checkpoints, 3)
    generator = Here(run)
    assert generator.ready.checkpoint == "step-000003"
    assert generator.greedy("base", "tuned") == [expected(base, None, 24), expected(base, adapter, 24)]
    with (sealed / "policy.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    with pytest.raises(StackllamaError) as broken:
        Here(run, "3")
    said = "checkpoint step-000003 policy.safetensors is not as it was sealed; name another one."
    assert (str(broken.value), broken.value.exit_code) == (said, 1)


@pytest.mark.slow
def test_answers_are_scored_as_the_reward_model_would(
    base: Path, adapter: Path, make: Callable[..., RunDir], tmp_path: Path
) -> None:
    reward = make_reward_model(base, tmp_path / "reward")
    run = make(Stage.PPO, f"reward_model_path={reward}")
    shutil.copytree(adapter, run.adapter)
    generator = Here(run)
    assert generator.ready.rewards and generator.ready.note is None
    said = [*generator.ask("base", "tuned")]
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    scorer = PeftModel.from_pretrained(classifier, str(reward)).eval()
    for done, text in zip([one for one in said if isinstance(one, Done)], _texts(said), strict=True):
        ids = Encoder(tokenizer, PromptFormat()).text_ids(QUESTION, text, ended=done.ended)
        assert done.reward == pytest.approx(scorer(torch.tensor([ids])).logits.item(), abs=1e-5)
    assert _texts(said) == [expected(base, None, 24), expected(base, adapter, 24)]  # the adapters do not disturb

    whole: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    whole.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    separate = make(Stage.PPO, f"reward_model_path={tmp_path / 'whole'}")
    shutil.copytree(adapter, separate.adapter)
    generator = Here(separate)
    assert all(isinstance(one.reward, float) for one in generator.ask("tuned") if isinstance(one, Done))
    separate.write_state(State(stage=Stage.PPO, phase="running"))
    assert "no rewards while it trains" in (Here(separate).ready.note or "")


def test_system_prompt_needs_the_chat_format(adapter: Path, make: Callable[..., RunDir]) -> None:
    ask = Ask(id=1, prompt="Why?", system="Answer briefly.")
    assert messages_of(ask) == [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Why?"},
    ]
    run = make(Stage.SFT)
    shutil.copytree(adapter, run.adapter)
    (refused,) = Here(run).ask("tuned", system="Answer briefly.")
    assert isinstance(refused, Failure) and "takes one question, not a conversation of system, user" in refused.error


def _texts(said: list[Reply]) -> list[str]:
    sides = dict.fromkeys(one.which for one in said if isinstance(one, Delta))
    return ["".join(one.text for one in said if isinstance(one, Delta) and one.which == side) for side in sides]


@pytest.mark.slow
def test_chat_with_a_merged_model_beside_its_base(base: Path, adapter: Path, make: Callable[..., RunDir]) -> None:
    run = make(Stage.MERGE, f"adapter_path={adapter}")
    merged: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    models.save_model(merged.merge_and_unload(), models.load_tokenizer(str(base)), run.merged, PromptFormat())
    generator = Here(run)
    assert generator.ready.model == str(base)
    assert generator.greedy("base", "tuned") == [expected(base, None, 24), expected(base, adapter, 24)]

    orphan = make(Stage.MERGE, "adapter_path=/nowhere")
    shutil.copytree(run.merged, orphan.merged)
    generator = Here(orphan)
    assert generator.ready.sides == ["tuned"] and "/nowhere holds no adapter" in (generator.ready.note or "")
    assert generator.greedy("tuned") == [expected(base, adapter, 24)]
    (refused,) = generator.ask("base")
    assert isinstance(refused, Failure) and refused.id == 1 and "no base model" in refused.error


@pytest.mark.slow
def test_chat_with_a_fully_trained_model(base: Path, make: Callable[..., RunDir], tmp_path: Path) -> None:
    run = make(Stage.SFT, "use_peft=false")
    trained = make_base(tmp_path / "trained", seed=9)
    shutil.copytree(trained, run.merged)
    generator = Here(run)
    assert generator.ready.sides == ["base", "tuned"]
    assert generator.greedy("base", "tuned") == [expected(base, None, 24), expected(trained, None, 24)]


@pytest.mark.slow
def test_chat_names_what_cannot_be_loaded(base: Path, adapter: Path, make: Callable[..., RunDir], begin: Begin) -> None:
    run = make(Stage.SFT)
    shutil.copytree(adapter, run.adapter)
    weights = run.adapter / "adapter_model.safetensors"
    weights.rename(run.adapter / "adapter_model.bin")  # a pickle, for all that anybody knows
    other = make(Stage.SFT)
    shutil.copytree(adapter, other.adapter)
    (other.adapter / models.BASE_FILE).write_text('{"name": "elsewhere", "revision": null, "fingerprint": "0"}')
    whole = make(Stage.SFT, "use_peft=false")
    shutil.copytree(base, whole.merged)
    (whole.merged / "model.safetensors").rename(whole.merged / "pytorch_model.bin")
    pickled = begin(run)
    for unusable, why in (
        (other, "is no longer the base that"),
        (whole, "it has no weights in safetensors"),
    ):
        with pytest.raises(StackllamaError, match=why) as raised:
            Here(unusable)
        assert raised.value.exit_code == 1
    empty = begin(make(Stage.SFT, phase="queued"))
    assert "other formats hold pickles and are not read" in pickled.line()["error"]
    assert "is queued and has trained nothing" in empty.line()["error"]
    assert [one.ended() for one in (pickled, empty)] == [1, 3]


@pytest.mark.slow
def test_generator_ends_with_the_process_that_started_it(make: Callable[..., RunDir], adapter: Path) -> None:
    run = make(Stage.SFT)
    shutil.copytree(adapter, run.adapter)
    argv, environment = chat_command(run, cpu=True)
    owner = (
        "import json, subprocess, sys, time; argv = json.loads(sys.argv[1])\n"
        "child = subprocess.Popen(argv, stdin=-1, stdout=-1, start_new_session=True)\n"
        "print(child.pid, child.stdout.readline().decode(), flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", owner, json.dumps(argv)], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        pid, _, ready = process.stdout.readline().decode().partition(" ")
        descriptor = os.pidfd_open(int(pid))
        try:
            assert '"ready":true' in ready and not _gone(int(pid))
            process.send_signal(signal.SIGKILL)
            deadline = time.monotonic() + PATIENCE
            while not _gone(int(pid)):
                assert time.monotonic() < deadline, "the generator outlived its owner"
                time.sleep(0.05)
        finally:
            process.kill()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)


def _gone(pid: int) -> bool:
    """Return whether a process ended, or is a zombie that its new parent has not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(
    "text", ["", "plain", "naïve café", "日本語 🎉👩‍👩‍👧", "a\n\n  b\tc", "C'est l'été", "x" * 300, "end \ufffd"]
)
def test_text_pieces_add_up_to_the_whole_text(base: Path, text: str) -> None:
    tokenizer = models.load_tokenizer(str(base))
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
    said = Text(tokenizer)
    pieces = [said.push(token) for token in [*ids, models.eos_id(tokenizer)]]
    assert "".join(pieces) + said.flush() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)  # no half character was ever said


def test_leading_white_space_is_left_out_and_half_a_character_is_said_at_the_end(base: Path) -> None:
    tokenizer = models.load_tokenizer(str(base))
    ids: list[int] = tokenizer("  \n hi 🎉", add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
    said = Text(tokenizer)
    pieces = [said.push(token) for token in ids[:-1]]
    assert "".join(pieces) == "hi "
    assert said.flush() == "\ufffd"
