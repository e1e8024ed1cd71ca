"""Content of the budget panel: this machine's memory against the engine's estimate, in every stage."""

import pytest
from tests.llama_7b import LLAMA_7B

from stackllama_console.readers.budget_view import (
    BudgetView,
    Memory,
    billions,
    build_view,
    gib,
    gib_range,
    parameters_of_name,
)
from stackllama_console.readers.form import Form
from stackllama_console.tui.widgets.budget_bar import groups, memory_label
from stackllama_engine.budget import fit
from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.calibration import Calibration, Kind, Row
from stackllama_engine.budget.estimate import estimate
from stackllama_engine.budget.shapes import architecture_of
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import TRAINING_STAGES, Stage

GIB = 1 << 30
REQUIRED = {
    Stage.SFT: ["model_name_or_path=x"],
    Stage.REWARD: ["model_name_or_path=x"],
    Stage.PREFERENCE: ["model_name_or_path=x"],
    Stage.PPO: ["model_name_or_path=x", "reward_model_path=y"],
    Stage.MERGE: ["adapter_path=x"],
    Stage.PIPELINE: ["model_name_or_path=x"],
}
RAM = Memory("RAM", 64 * GIB, 48 * GIB)


@pytest.fixture
def llama() -> Architecture:
    return architecture_of(LLAMA_7B, "llama-7b", "config.json", frozenset())


def recipe(stage: Stage, *overrides: str) -> AnyRecipe:
    """Make a recipe without an `auto`; every base is in 8 bits but the reward model's."""
    words = [*REQUIRED[stage], *overrides]
    if stage in TRAINING_STAGES or stage is Stage.PIPELINE:
        said = [word for word in overrides if "load_in_" in word or "precision" in word]
        words += [] if said else ["base_precision=dtype" if stage is Stage.REWARD else "base_precision=int8"]
        again = str(stage is Stage.PREFERENCE).lower()  # both responses of a pair at once do not fit without
        words += [] if any("checkpointing" in word for word in overrides) else [f"gradient_checkpointing={again}"]
    if stage is Stage.PIPELINE:
        words += ["sft.gradient_checkpointing=true"]
    return load_recipe(stage, None, words)


def gpu(total: float, free: float | None = None, name: str = "A GPU") -> Memory:
    return Memory(name, int(total * GIB), int((total if free is None else free) * GIB))


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_has_a_view_whose_parts_sum_to_the_peak(stage: Stage, llama: Architecture) -> None:
    view = build_view(recipe(stage, *(["use_cpu=false"] if stage is Stage.MERGE else [])), llama, [gpu(80)], RAM)
    assert sum(part.bytes for part in view.parts) == view.allocated > 0
    assert view.allocated <= view.reserved[0] <= view.reserved[1] <= view.device[1]
    assert view.verdict == "yes" and view.offers == () and "80.0 GiB free" in view.reason
    assert view.memories == (gpu(80),) and view.peak and view.model == "llama-7b"
    assert [rule.name for rule in view.rules] == ["int8 + LoRA: 1.2–1.4 GB/B"]


def test_the_verdict_follows_the_free_memory(llama: Architecture) -> None:
    found = estimate(recipe(Stage.SFT), llama, on_gpu=True)  # type: ignore[arg-type]
    low, high = (end / GIB for end in found.device)
    for free, verdict in ((high + 0.1, "yes"), ((low + high) / 2, "tight"), (low - 0.5, "no")):
        assert build_view(recipe(Stage.SFT), llama, [gpu(free)]).verdict == verdict
    view = build_view(recipe(Stage.SFT), llama, [gpu(80, low - 0.5)])
    assert view.verdict == "no" and "would fit, but only" in view.reason
    view = build_view(recipe(Stage.SFT), llama, [gpu(80), gpu(80, low - 0.5)])
    assert view.verdict == "no", "the fullest GPU decides"
    view = build_view(recipe(Stage.SFT), llama, [], None)
    assert view.verdict == "unknown" and view.note == "no GPU; showing CPU memory"


def test_each_process_on_the_cpu_holds_everything(llama: Architecture) -> None:
    alone = build_view(recipe(Stage.SFT, "load_in_8bit=false"), llama, [], RAM)
    assert alone.memories == (RAM,) and alone.note == "no GPU; showing CPU memory"
    many = build_view(recipe(Stage.SFT, "load_in_8bit=false", "num_processes=4"), llama, [], RAM)
    assert many.verdict == "no" and "per process" in many.reason
    asked = build_view(recipe(Stage.SFT, "use_cpu=true"), llama, [gpu(80)], RAM)
    assert asked.memories == (RAM,) and "use_cpu" in asked.note


def test_only_the_gpus_that_are_asked_for_count(llama: Architecture) -> None:
    view = build_view(recipe(Stage.SFT, "num_processes=1"), llama, [gpu(80), gpu(1)])
    assert view.memories == (gpu(80),) and view.verdict == "yes" and view.note == "1 of 2 GPUs"
    view = build_view(recipe(Stage.SFT, "num_processes=3"), llama, [gpu(80), gpu(80)])
    assert view.note == "3 processes asked for, 2 GPUs here"


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.REWARD, Stage.PPO, Stage.PIPELINE])
def test_what_is_offered_goes_into_the_form_and_makes_it_fit(stage: Stage, llama: Architecture) -> None:
    form = Form(stage)
    form.load(recipe(stage, "load_in_8bit=false", "dtype=float32"))
    gpus = [gpu(24)]
    view = build_view(form.recipe(), llama, gpus)
    assert view.verdict == "no" and view.offers[0].fits == "yes" and view.offers[0].saving > GIB
    for _ in range(8):  # a pipeline's next largest stage comes to light
        if view.verdict == "yes":
            break
        for key, text in view.offers[0].changes.items():
            form.set(key, text)
        assert form.errors() == {}
        view = build_view(form.recipe(), llama, gpus)
    assert view.verdict == "yes"


def test_a_pipeline_names_the_stage_that_takes_most(llama: Architecture) -> None:
    view = build_view(recipe(Stage.PIPELINE, "load_in_8bit=false", "dtype=float32"), llama, [gpu(24)])
    assert view.peak.split()[0] in ("sft", "reward", "ppo")
    assert all(key.startswith(f"{view.peak.split()[0]}.") for offer in view.offers for key in offer.changes)


def test_a_pipelines_merge_on_the_cpu_is_held_against_the_ram(llama: Architecture) -> None:
    view = build_view(recipe(Stage.PIPELINE, "load_in_8bit=false"), llama, [gpu(2000)], Memory("RAM", GIB, GIB))
    assert view.peak.startswith("merge ") and view.memories[0].name == "RAM" and view.offers == ()


def test_training_every_weight_puts_its_own_rule_first(llama: Architecture) -> None:
    view = build_view(recipe(Stage.SFT, "use_peft=false", "load_in_8bit=false"), llama, [gpu(80)])
    assert view.rules[0].name.startswith("full training") and "LoRA" in view.rules[1].name


def test_without_an_architecture_the_rules_are_computed_from_the_name() -> None:
    view = build_view(recipe(Stage.SFT), None, [gpu(24)], model="meta-llama/Llama-2-7b-hf", error="not here")
    assert view.parameters == 7_000_000_000 and view.guessed and view.reason == "not here"
    assert view.rules[0].low == 8_400_000_000 and view.rules[0].high == 9_800_000_000
    assert view.verdict == "unknown" and view.parts == ()
    nothing = build_view(None, None, [], None)
    assert nothing == BudgetView(reason="choose a model", note="no GPU; showing CPU memory")


def test_a_form_with_errors_still_shows_the_rules_of_its_model(llama: Architecture) -> None:
    view = build_view(None, llama, [gpu(24)], error="the form has errors")
    assert view.parameters == llama.parameters and not view.guessed and view.rules
    assert view.reason == "the form has errors"


def test_hostile_names_are_sanitised(llama: Architecture) -> None:
    bad = "\x1b]52;c;aGVsbG8=\x07 x [/] \x9b2J\nname"
    for view in (
        build_view(recipe(Stage.SFT), llama, [gpu(24, name=bad)], model=bad, error=bad),
        build_view(None, None, [gpu(24, name=bad)], model=bad, error=bad),
    ):
        texts = [view.model, view.reason, view.caveat, view.note, *(one.name for one in view.memories)]
        assert all(text.isprintable() for text in texts)
        assert "x [/] name" in view.model


def test_gib_keeps_one_decimal() -> None:
    assert gib(24.2 * GIB) == "24.2 GiB" and gib(0.3 * GIB) == "307.2 MiB" and gib(37 << 20) == "37.0 MiB"
    assert gib(0) == "0.0 GiB"
    assert gib_range((8 * GIB, 9 * GIB)) == "8.0–9.0 GiB" and gib_range((GIB, GIB)) == "1.0 GiB"
    assert gib_range((37 << 20, GIB)) == "37.0 MiB–1.0 GiB"
    assert [billions(count) for count in (6_738_415_616, 385_152, 124_000_000, 12)] == [
        "6.74 B",
        "385 k",
        "124 M",
        "12",
    ]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("meta-llama/Llama-2-7b-hf", 7_000_000_000),
        ("Qwen/Qwen2.5-0.5B-Instruct", 500_000_000),
        ("EleutherAI/pythia-160m", 160_000_000),
        ("gpt2", None),
        ("model-4bit", None),
        ("a7b", None),
        ("9" * 400 + "b", None),
    ],
)
def test_the_size_in_a_models_name(name: str, count: int | None) -> None:
    assert parameters_of_name(name) == count


def test_what_runs_measured_narrows_the_range_and_the_note_says_so(llama: Architecture) -> None:
    asked = recipe(Stage.SFT, "bf16=true")
    view = build_view(asked, llama, [gpu(24)], RAM)
    low, high = view.reserved
    kind = Kind(machine="here", versions={}, stage="sft", method="lora int8 bf16", gpus=1, on_gpu=True)
    row = Row(
        kind=kind, run="r", time=1.0, allocated=view.allocated, interval=view.reserved, measured=low + (high - low) // 4
    )
    known = Calibration(cpu="", gpu="here", versions={}, rows=[row] * 3)
    narrowed = build_view(asked, llama, [gpu(24)], RAM, calibration=known)
    assert narrowed.note == "range narrowed by 3 finished runs of this kind on this machine"
    assert low <= narrowed.reserved[0] < narrowed.reserved[1] < high
    assert narrowed.device[1] < view.device[1] and narrowed.allocated == view.allocated
    other = build_view(recipe(Stage.REWARD, "bf16=true"), llama, [gpu(24)], RAM, calibration=known)
    assert "range" not in other.note


def test_where_no_change_is_enough_it_is_known_whether_all_together_are() -> None:
    big = LLAMA_7B | {
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "intermediate_size": 28672,
    }
    llama_70b = architecture_of(big, "llama-70b", "config.json", frozenset())
    view = build_view(recipe(Stage.SFT), llama_70b, [gpu(8)], RAM)
    assert len(view.offers) > 1 and {offer.fits for offer in view.offers} == {"no"} and view.together == "no"
    enough = build_view(recipe(Stage.SFT), llama_70b, [gpu(80)], RAM)
    assert enough.together == "unknown"  # one of them does


def test_all_together_takes_of_two_changes_that_exclude_each_other_the_better(llama: Architecture) -> None:
    given = ["load_in_8bit=false", "per_device_train_batch_size=8", "gradient_checkpointing=true"]
    view = build_view(recipe(Stage.SFT, *given), llama, [gpu(3)], RAM)
    keys = {key for offer in view.offers for key in offer.changes}
    assert "base_precision" in keys and view.together == "no"


def test_all_together_may_do_what_none_does_alone(llama: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(Stage.SFT, "per_device_train_batch_size=16", "gradient_checkpointing=true")
    places = [gpu(6 + size / 4) for size in range(40)]
    real = fit.suggestions
    monkeypatch.setattr(fit, "suggestions", lambda *a, **k: [one for one in real(*a, **k) if one.fits == "no"])
    found = {build_view(asked, llama, [place], RAM).together for place in places}
    assert {"no", "tight", "yes"} <= found


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.REWARD, Stage.PPO, Stage.PIPELINE])
def test_an_unknown_memory_shows_no_number_that_could_be_taken_for_it(stage: Stage) -> None:
    strange = architecture_of(LLAMA_7B | {"kv_lora_rank": 512}, "m", "config.json", frozenset())
    view = build_view(recipe(stage), strange, [gpu(80000)], Memory("RAM", 1 << 50, 1 << 50))
    assert (view.verdict, view.parts, view.device, view.rules, view.offers) == ("unknown", (), (0, 0), (), ())
    assert view.reason.startswith("at least ") and view.least and "`kv_lora_rank`" in view.caveat
    small = build_view(recipe(stage), strange, [gpu(0.1)], RAM)
    assert small.reason.endswith("which is more than there is")
    without = build_view(recipe(stage), strange, [], None)
    assert without.verdict == "unknown" and without.reason.startswith("at least ")


def test_a_mixture_in_8_bits_says_how_it_can_be_known() -> None:
    config = LLAMA_7B | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    mixture = architecture_of(config, "m", "config.json", frozenset())
    view = build_view(recipe(Stage.SFT), mixture, [gpu(80)], RAM)
    assert view.verdict == "unknown" and "`base_precision: bf16`" in view.caveat and not view.least
    known = build_view(recipe(Stage.SFT, "load_in_8bit=false", "dtype=bfloat16"), mixture, [gpu(40)], RAM)
    assert known.verdict in ("tight", "no")
    assert not [one for one in known.offers if "base_precision" in one.changes]


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.REWARD, Stage.PPO, Stage.PIPELINE])
def test_the_verdict_and_the_bar_are_of_the_same_gpu(stage: Stage, llama: Architecture) -> None:
    """Of eight GPUs the last is nearly full: whatever the stage, it decides, and it is the one that is drawn."""
    free = [79.0] * 7 + [3.0]
    gpus = [Memory("A GPU", 80 * GIB, int(each * GIB), f"GPU {index}") for index, each in enumerate(free)]
    view = build_view(recipe(stage), llama, gpus, RAM)
    assert view.verdict in ("tight", "no") and "3.0 GiB" in view.reason
    drawn = groups(view.memories)[0]
    assert "GPU 7: 3.0 GiB free" in memory_label(drawn, 80)
    if stage is not Stage.PIPELINE:
        asked = build_view(recipe(stage, "num_processes=1"), llama, gpus, RAM)
        assert memory_label(groups(asked.memories)[0], 80).startswith("GPU 0 A GPU") and asked.note == "1 of 8 GPUs"
