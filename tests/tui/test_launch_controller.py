"""The launch controller without an application: one plan is shown, confirmed and carried out."""

import asyncio
from pathlib import Path

import pytest
from tests.tui.screens_kit import isolate

from stackllama_console.readers.draft import Source
from stackllama_console.settings import Settings
from stackllama_console.tui.screens import launch_controller
from stackllama_console.tui.screens.launch_controller import LaunchController, Summary
from stackllama_engine.contract.errors import RefusedError, StackllamaError
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher


class Launcher:
    """Stands in for the launcher: keeps the plans that it made, starts nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans: list[launcher.Plan] = []
        self.launched: list[launcher.Plan] = []
        self._plan = launcher.plan
        monkeypatch.setattr(launch_controller.launcher, "plan", self.plan)
        monkeypatch.setattr(launch_controller.launcher, "launch", self.launch)

    def plan(self, home: Home, recipe: AnyRecipe, name: str | None = None, **_: object) -> launcher.Plan:
        self.plans.append(self._plan(home, recipe, name))
        return self.plans[-1]

    def launch(self, planned: launcher.Plan) -> RunDir:
        self.launched.append(planned)
        return planned.home.create(planned.stage, planned.recipe_yaml, planned.name)


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LaunchController:
    controller = LaunchController(isolate(tmp_path, monkeypatch), Settings(model="demo"))
    controller.draft.form.set("lora_r", "8")
    controller.rename("first")
    return controller


def recipe_of(controller: LaunchController) -> AnyRecipe:
    recipe = controller.draft.form.recipe()
    assert recipe is not None
    return recipe


def answering(answer: bool, summaries: list[Summary]) -> launch_controller.Confirm:
    async def confirm(summary: Summary) -> bool:
        summaries.append(summary)
        return answer

    return confirm


def test_launch_carries_out_the_plan_that_was_confirmed(
    controller: LaunchController, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, summaries = Launcher(monkeypatch), list[Summary]()
    run = asyncio.run(controller.launch(recipe_of(controller), answering(True, summaries)))
    assert run is not None and run.id == "first"
    (planned,) = fake.plans
    assert fake.launched == [planned]
    assert summaries[0].worker == planned.command.in_shell() and "lora_r=8" in dict(summaries[0].rows)["changed"]
    assert (controller.settings.stage, controller.settings.recent_models) == ("sft", ["demo"])
    assert not controller.busy and not controller.launching


def test_launch_starts_nothing_without_a_yes(controller: LaunchController, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, summaries = Launcher(monkeypatch), list[Summary]()
    assert asyncio.run(controller.launch(recipe_of(controller), answering(False, summaries))) is None
    assert len(fake.plans) == 1 and fake.launched == [] and not controller.busy


def test_launch_ignores_a_second_launch_meanwhile(
    controller: LaunchController, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Launcher(monkeypatch)

    async def confirm(_: Summary) -> bool:
        assert await controller.launch(recipe_of(controller), confirm) is None
        return True

    assert asyncio.run(controller.launch(recipe_of(controller), confirm)) is not None
    assert len(fake.plans) == 1


def test_launch_refuses_a_slurm_recipe_and_says_how_to_submit_it(controller: LaunchController) -> None:
    source = Source(recipe=recipe_of(controller), origin="cloned from x", sbatch={"time": "8:00:00"})
    controller.draft.take(source)
    with pytest.raises(RefusedError, match="--slurm --sbatch-option=time=8:00:00"):
        asyncio.run(controller.launch(recipe_of(controller), answering(True, [])))
    assert not controller.busy


def test_summary_is_of_the_form_that_was_planned(controller: LaunchController, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, summaries = Launcher(monkeypatch), list[Summary]()
    plan = fake.plan

    def edited_meanwhile(home: Home, recipe: AnyRecipe, name: str | None = None, **_: object) -> launcher.Plan:
        controller.draft.form.set("lora_r", "64")
        controller.rename("second")
        return plan(home, recipe, name)

    monkeypatch.setattr(launch_controller.launcher, "plan", edited_meanwhile)
    asyncio.run(controller.launch(recipe_of(controller), answering(True, summaries)))
    assert "lora_r=8" in dict(summaries[0].rows)["changed"] and "lora_r: 8\n" in fake.launched[0].recipe_yaml
    assert summaries[0].run == "first" == fake.launched[0].name


def test_summary_of_a_run_without_a_name_has_its_stage(controller: LaunchController) -> None:
    controller.rename("")
    assert asyncio.run(controller.describe()).run == "sft"


def test_describe_says_why_nothing_can_be_launched(controller: LaunchController) -> None:
    controller.draft.form.set("model_name_or_path", "/no/such/model")
    summary = asyncio.run(controller.describe())
    assert "is not found here" in summary.error and summary.worker == ""


def test_name_error_names_a_taken_name(controller: LaunchController) -> None:
    controller.home.create(Stage.SFT, "", "taken")
    assert controller.name_error(" taken ") == "A run taken exists already; choose another name."
    assert "not a run name" in controller.name_error("A b") and controller.name_error("") == ""


def test_a_failed_launch_leaves_the_controller_ready(
    controller: LaunchController, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: launcher.Plan) -> RunDir:
        raise StackllamaError("not started")

    monkeypatch.setattr(launch_controller.launcher, "launch", fails)
    with pytest.raises(StackllamaError):
        asyncio.run(controller.launch(recipe_of(controller), answering(True, [])))
    assert not controller.busy and not controller.launching and controller.settings.recent_models == []
