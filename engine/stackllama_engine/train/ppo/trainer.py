"""The PPO stage around the algorithm (:mod:`.algorithm`): load, evaluate, serve requests, save, roll back."""

import math
import time
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import torch
from transformers import get_scheduler

from ...contract.errors import StageError
from ...contract.recipe import PPORecipe
from ...contract.recipe_common import steps_of
from ...contract.requests import Change
from ...contract.stages import Split
from .. import checkpoint, limits, models, optimizers, schedule, trackers, trial_save
from ..disk_wait import Saved, until_saved, write_result
from ..faults import BatchSizes, RollbackPolicy
from ..prompt_formats import make_encoder
from ..save_timer import SaveTimer
from ..saving import Saver, newest_sealed
from ..serving import Service, serve
from ..session import Session
from ..signals import Stopped
from . import fault_tolerance, frontier, losses
from .algorithm import Algorithm, LearnResult, Updater
from .evaluation import Evaluator, Row, held_out_objective, summary
from .fault_tolerance import Abandoned, RunOnAllRanks
from .health_checks import HealthChecks
from .mismatch import SamplerCheck
from .model_checks import check_policy
from .prompts import Prompt, Prompts, load_prompts, report_prompts
from .response_metrics import common_range, response_metrics
from .rewards import Rewards, RewardScaling, Unscored
from .rollout import Rollout, RolloutWorker, sequence_sum
from .rollout_metrics import evaluation_metrics, objective, response_kl, side_by_side, throughput
from .sampling import Noise, draw_noise
from .shared_base import VALUE_FILE, SharedBase
from .state import Evaluations, Trainables
from .update import explained_variance, mean_over_ranks

When = Literal["before", "during", "after", "asked"]
"""Time of an evaluation: before the first step, between two steps, after the last one, or on request."""


def run(recipe: PPORecipe, session: Session) -> dict[str, Any]:
    """Run the stage to its end; returns the facts for ``result.json``.

    Raises:
        StackllamaError: a model or the data cannot be used.
        Stopped: asked to stop, after saving.
    """
    session.reporter.phase("load")
    return PPO(recipe, session).train()


def total_steps(recipe: PPORecipe, prompts: int, world_size: int) -> int:
    """Return the PPO steps of a run: ``max_steps``, or as many as ``num_train_epochs`` passes over the prompts take."""
    if recipe.max_steps > 0:
        return recipe.max_steps
    prompts_per_step = recipe.local_batch_size * world_size // recipe.group_size
    return math.ceil(recipe.num_train_epochs * prompts / prompts_per_step)


def groups(base: SharedBase, recipe: PPORecipe) -> list[dict[str, Any]]:
    """Make the optimizer's parameter groups: the policy, and a critic with its own learning rate."""
    policy, critic = base.parameter_groups()
    if not critic:
        return [{"params": policy}]
    return [{"params": policy}, {"params": critic, "lr": recipe.value_learning_rate or recipe.learning_rate}]


class PPO:
    """One rank of a PPO run.

    Args:
        recipe: the PPO recipe.
        session: rank, device, reporter, requests.
    """

    def __init__(self, recipe: PPORecipe, session: Session) -> None:
        self.recipe = recipe
        self.session = session
        self.reporter = session.reporter
        self.tokenizer = models.load_tokenizer(recipe.model_name_or_path, recipe.model_revision)
        self.encoder = make_encoder(recipe, session, self.tokenizer)
        self.base = SharedBase(recipe, session.device)
        limits.check_tokens(self.base.base, self.tokenizer, recipe.model_name_or_path)
        check_policy(recipe, self.base, self.encoder, self.reporter)
        self.rewards = Rewards(recipe, self.base, self.encoder, self.reporter)
        if notice := models.padding_notice(self.tokenizer):
            self.reporter.health(notice)
        self.reporter.activity("tokenizing")
        training = self._load(recipe.dataset_train_split, recipe.max_train_samples)
        self.prompts = Prompts(training, recipe.seed)
        self.held_out = self._load(recipe.dataset_test_split, recipe.max_eval_samples)
        report_prompts(recipe, training, self.held_out, self.reporter)
        self._check_lengths()
        self.steps = total_steps(recipe, len(self.prompts), session.world_size)
        optimizer = optimizers.build(recipe, groups(self.base, recipe))
        warmup, more = steps_of(recipe.warmup_steps, self.steps), schedule.extra_arguments(recipe)
        scheduler = get_scheduler(recipe.lr_scheduler_type, optimizer, warmup, self.steps, more)
        target = recipe.target if recipe.adap_kl_ctrl else None
        self.controller = losses.KLController(recipe.kl_coef, target, recipe.horizon)
        self.scaling = RewardScaling(recipe.normalize_reward, recipe.cliprange_reward, session.reduce)
        self.trainables = Trainables(self.base, optimizer, scheduler, self.controller, self.scaling)
        self.batch_sizes = BatchSizes(recipe, self.reporter, self._note)
        self.worker = RolloutWorker(recipe, session, self.base, self.encoder, self.rewards, self.batch_sizes)
        self.sampler_check = SamplerCheck(recipe, session, self.base)
        self.seen_range = common_range(recipe, session)
        updater = Updater(recipe, self.base, optimizer, session.reduce, self.batch_sizes)
        run_on_all_ranks = RunOnAllRanks(session, self.batch_sizes)
        self.algorithm = Algorithm(
            recipe, self.worker, self.scaling, self.controller, updater, run_on_all_ranks, session.reduce
        )
        self.evaluator = Evaluator(
            recipe,
            session,
            self.base,
            self.encoder.stop_ids,
            self.algorithm,
            self.worker,
            run_on_all_ranks,
            self.held_out,
        )
        self.best: Row | None = None
        """The evaluation during training with the best score − KL coefficient × KL."""
        before = session.restarts.now
        if before.message:
            self.reporter.health(before.message)
        self.rollback_policy = RollbackPolicy(recipe.max_skipped_steps, recipe.max_rollbacks, before.rollbacks)
        self.health = HealthChecks(recipe, session)
        self.service = Service(self._change, self._sample_on_request)
        self.saver = Saver(self.reporter)
        self.start = self.trainables.snapshot()

    def train(self) -> dict[str, Any]:
        """Train all steps, with an evaluation on the same held-out prompts before, after and, where set, in between.

        Raises:
            Stopped: asked to stop, after saving.
        """
        recipe = self.recipe
        self.session.accelerator.init_trackers("stackllama")
        self.session.loaded()
        trial_save.try_save(self.base.model, self.tokenizer, recipe.model_name_or_path, self.session)
        done, before = self._begin()
        rolled_back = self.session.restarts.now
        if rolled_back.learning_rate is not None and rolled_back.at_step == done:
            schedule.set_peak(self.trainables.optimizer, self.trainables.scheduler, rolled_back.learning_rate)
        self.session.requests.timer = SaveTimer(recipe.save_minutes, self.reporter)
        log_every, eval_every = (steps_of(n, self.steps) for n in (recipe.logging_steps, recipe.eval_steps))
        while done < self.steps:
            try:
                metrics, bad = self.step(done)
            except Abandoned:
                self._save_and_stop(done, before)
            except Unscored:  # nothing of the step was applied: what was trained until here is not lost with it
                self._save_unless_saved(done, before)
                raise
            done += 1
            self.reporter.progress(done, self.steps)
            if done % log_every == 0 or done in (1, self.steps) or bad:
                self.reporter.metrics(done, metrics)
                trackers.log(self.session.accelerator, metrics, done, self.reporter)  # to `report_to`, if anything
                self.reporter.memory()
            self.health.after_step(done, metrics)
            if self.rollback_policy.after_step(done, bad):
                done = self._roll_back(done)
                continue
            if eval_every and done % eval_every == 0 and done < self.steps:
                # before the checkpoint: a resumed run has it already
                self._remember(done, self._evaluate_or_stop(done, "during", before), before)
            self._serve_and_save(done, before)
        after = self._evaluate_or_stop(self.steps, "after", before)
        compared = self._compare_or_stop(before, after)
        self._save_adapter()
        trackers.end(self.session.accelerator, self.reporter)
        best = self._report_best_checkpoint()
        return {
            "before": evaluation_metrics(before),
            "after": evaluation_metrics(after),
            "steps": self.steps,
            "temperature": recipe.temperature,
            "comparison": compared,
            "samples": side_by_side(before, after),
            **best,
        }

    def _report_best_checkpoint(self) -> dict[str, Any]:
        """Return which checkpoint to take, as facts of the result; a notice where that is not the last step's."""
        choice = frontier.choose_checkpoint(self.recipe, self.session.run) if self.session.is_main else None
        if choice is None:
            return {}
        if choice.is_worse_at_the_end:
            self.reporter.health(frontier.advice(choice, self.session.run))
        return frontier.facts(choice, self.session.run)

    def _begin(self) -> tuple[int, dict[str, Any]]:
        """Load the newest verified checkpoint, or start; return the steps done, and the evaluation before them.

        Raises:
            Stopped: asked to stop before anything was trained; there is nothing to save.
        """
        saved = checkpoint.to_resume(self.reporter, self.recipe)
        if saved:
            progress = self.trainables.load(saved)
            if self.base.has_critic and not (self.base.has_separate_critic or progress.value_loss_apart):
                self.reporter.health(
                    "the version that wrote this checkpoint also trained the policy with the value loss; from here on "
                    "the value head reads detached states"
                )
            self.reporter.forget_samples_after(progress.step)
            self.best = progress.best
            self.health.resume(progress.step, progress.health)
            before = self._comparable(progress.before)
            if progress.owes_evaluation:
                during = self._evaluate_or_stop(progress.step, "during", before)
                self._remember(progress.step, during, before)
            return progress.step, before
        try:
            if fault_tolerance.canary_is_wanted():
                self._run_canary()
            self.health.resume(0)
            self.reporter.forget_samples_after(-1)  # an attempt that saved nothing is made again from its beginning
            return 0, self.evaluate(0, "before")
        except Abandoned:
            raise Stopped from None

    def _comparable(self, before: dict[str, Any]) -> dict[str, Any]:
        """Return a checkpoint's evaluation before training, made again where it cannot be compared with today's.

        That is where it is of other prompts than today's (the recipe changed), or of a version that wrote no ``score``.
        The base is still in memory.

        Raises:
            Stopped: asked to stop; the checkpoint stays as it is.
        """
        now = [prompt.question for prompt in self.held_out]
        if [row["question"] for row in before["rows"]] == now and all("score" in row for row in before["rows"]):
            return before
        self.reporter.health(
            "the evaluation before training is of other held-out prompts, or of an older version: the base is "
            "evaluated again on the current prompts"
        )
        self.best = None
        self.reporter.phase("evaluate")
        try:
            return {"rows": self.evaluator.rows(self.evaluator.trained._replace(policy=False))}
        except Abandoned:
            raise Stopped from None

    def step(self, step: int) -> tuple[dict[str, float], str | None]:
        """Make one PPO step.

        Returns:
            its metrics, and what was bad about it; then nothing of it was applied.

        Raises:
            Abandoned: a stop is wanted; nothing of the step was applied.
        """
        started = time.perf_counter()
        self.reporter.phase("rollout")
        prompts, indices = self._batch(step)
        noise = self._noise(step, indices)
        responses = self.algorithm.sample(prompts, noise, self.encoder.stop_ids, self.recipe.group_size)
        sampled = time.perf_counter()
        self.reporter.phase("score")
        rollout = self.algorithm.score(prompts, responses)
        scored = time.perf_counter()
        if bad := self.worker.not_finite(rollout):
            self.reporter.health(f"step {step + 1} skipped: {bad}")
            schedule.advance(self.trainables.scheduler)
            fault = None if self.worker.nothing_scored(rollout) else bad  # nothing that a rollback would fix
            return {"objective/scores": float(rollout.scores.mean()), "ppo/updates": 0.0}, fault
        mismatch = self.sampler_check(step, responses, rollout)
        self.reporter.phase("update")
        before = self.trainables.snapshot()
        try:
            metrics, bad = self._learn(step, rollout)
        except Abandoned:
            self.trainables.restore(before)
            raise
        updated = time.perf_counter()
        metrics |= mismatch
        metrics |= {
            "time/rollout": sampled - started,
            "time/score": scored - sampled,
            "time/update": updated - scored,
            **throughput(metrics, updated - started),
        }
        return metrics, bad

    def _learn(self, step: int, rollout: Rollout) -> tuple[dict[str, float], str | None]:
        """Update from a rollout, record it, then move KL coefficient and schedule once; returns as :meth:`step`."""
        shuffle = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        learned = self.algorithm.learn(rollout, shuffle)
        stats = learned.stats
        rows = self.worker.rows(rollout, response_kl(rollout))
        metrics, count = self._objective_metrics(rollout, learned, rows)
        self.reporter.samples(step + 1, rows[: self.recipe.num_sample_generations])
        self.algorithm.adapt_kl_coef(
            metrics.get(f"objective/kl_{self.recipe.penalty_estimator}", metrics["objective/kl"]), count
        )
        metrics |= response_metrics(rollout, self.seen_range, self.session.reduce)
        metrics["objective/kl_coef"] = learned.kl_coef
        metrics["learning_rate"] = float(self.trainables.scheduler.get_last_lr()[0])
        metrics["episode"] = float((step + 1) * count)
        metrics |= learned.scaling_metrics
        metrics |= stats.metrics(critic=self.base.has_critic, kl_in_loss=learned.advantages.ref_logprobs is not None)
        if learned.advantages.zero_std is not None:
            metrics["frac_reward_zero_std"] = mean_over_ranks(learned.advantages.zero_std, self.session.reduce)
        if learned.advantages.returns is not None:
            metrics["val/var_explained"] = explained_variance(
                rollout.old.values, learned.advantages.returns, rollout.mask, self.session.reduce
            )
        if stats.first is None:
            self.reporter.health(f"step {step + 1}: nothing was learned, because no response was in the loss")
        if stats.skipped:
            self.reporter.health(f"step {step + 1}: skipped {stats.skipped} mini-batches (ratio or gradient)")
        schedule.advance(self.trainables.scheduler)
        none_applied = stats.skipped and not stats.updates
        return metrics, "every mini-batch was skipped (ratio or gradient)" if none_applied else None

    def _objective_metrics(
        self, rollout: Rollout, learned: LearnResult, rows: list[dict[str, Any]]
    ) -> tuple[dict[str, float], int]:
        """Compute PPO's objective as metrics over the responses of all ranks, and the number of these."""
        penalty = sequence_sum(learned.advantages.kl, rollout.mask)  # [B]
        return objective(rollout, learned.scores, penalty, rows, self.recipe, learned.kl_coef, self.session.reduce)

    def _run_canary(self) -> None:
        """Run the worst case once, without a trace; see :mod:`.fault_tolerance`."""
        recipe, reporter = self.recipe, self.reporter
        prompts = [self.prompts.at(fault_tolerance.longest_prompt(self.prompts))] * recipe.local_batch_size
        reporter.phase("rollout")
        noise = fault_tolerance.canary_noise(recipe)
        responses = self.algorithm.sample(prompts, noise, fault_tolerance.NO_END, recipe.group_size)
        reporter.phase("score")
        rollout = self.algorithm.score(prompts, responses)
        self.worker.check_finite(rollout)
        with fault_tolerance.untouched(self.trainables):
            reporter.phase("update")
            self.algorithm.learn_as_canary(rollout, torch.Generator().manual_seed(recipe.seed))
            reporter.phase("save")
            if self.session.is_main:
                count = checkpoint.Retention.of(recipe).at_most(self.steps, steps_of(recipe.save_steps, self.steps))
                fault_tolerance.write_trial_checkpoint(self.trainables, self.session.run, responses, count)
            self.session.state.wait_for_everyone()
        reporter.health(
            f"canary passed: {len(prompts)} prompts of {len(prompts[0].ids)} tokens, responses of {len(responses[0])} "
            "tokens, one update and one checkpoint"
        )

    def evaluate(self, step: int, when: When) -> dict[str, Any]:
        """Evaluate on the held-out prompts with the same noise each time; report means and first rows.

        Args:
            step: PPO steps done.
            when: recorded with the rows. ``asked``: only as many prompts as rows are recorded, and no means.

        Returns:
            The rows of all ranks, in the order of the prompts.

        Raises:
            Abandoned: a stop is wanted; nothing was reported.
            StageError: a score or log-probability is not finite.
        """
        self.reporter.phase("evaluate")
        recorded = max(self.recipe.num_sample_generations, 1 if when == "asked" else 0)
        rows = self.evaluator.rows(count=recorded if when == "asked" else None)
        marks = {"split": Split.EVALUATION.value, "when": when}
        self.reporter.samples(step, [marks | row for row in rows[:recorded]])
        if when != "asked":
            means = {
                f"eval/{name}": value
                for name, value in evaluation_metrics({"rows": rows}).items()
                if name != "questions"
            }
            means["eval/objective"] = held_out_objective(rows, self.recipe.kl_coef)
            means |= frontier.selection_metrics(self.recipe, rows)
            self.reporter.metrics(step, means)
            trackers.log(self.session.accelerator, means, step, self.reporter)
        return {"rows": rows}

    def _check_lengths(self) -> None:
        """Compare the longest text, prompt and response, with what policy and reward model take."""
        recipe = self.recipe
        held_out = max(len(prompt.ids) for prompt in self.held_out)
        longest = max(held_out, len(self.prompts.at(fault_tolerance.longest_prompt(self.prompts)).ids))
        tokens = longest + recipe.longest_response
        keys = f"`max_prompt_length={recipe.max_prompt_length}` and {recipe.length_key}"
        limits.check_length(self.base.base, recipe.model_name_or_path, tokens, keys, self.reporter)
        self.rewards.check_length(tokens, keys, self.reporter)

    def _load(self, split: str, limit: int | None) -> list[Prompt]:
        return load_prompts(self.recipe, split, limit, self.encoder, self.reporter, self.rewards.columns_read)

    def _batch(self, step: int) -> tuple[list[Prompt], list[int]]:
        """Return this rank's prompts of a step, one per response, and the responses' positions over all ranks.

        A rank has every world-size-th prompt, each as often as its group has responses, one after the other.
        """
        size = self.recipe.group_size
        total = self.recipe.local_batch_size * self.session.world_size // size  # prompts
        mine = range(self.session.rank, total, self.session.world_size)
        prompts = [self.prompts.at(step * total + index) for index in mine for _ in range(size)]
        return prompts, [index * size + member for index in mine for member in range(size)]

    def _noise(self, step: int, indices: Sequence[int]) -> list[Noise]:
        """Draw noise of the responses at these positions in the batch over all ranks."""
        return [draw_noise(self.recipe.seed, step, index, self.recipe.length_limits) for index in indices]

    def _serve_and_save(self, done: int, before: dict[str, Any]) -> None:
        """Serve requests, wait out a pause, and write due checkpoints, at a step boundary.

        Raises:
            Stopped: asked to stop, after saving.
        """
        requests, every = self.session.requests, steps_of(self.recipe.save_steps, self.steps)
        due = bool(every) and done % every == 0
        while True:
            try:
                wanted = serve(requests, self.reporter, done, self.service)
            except Abandoned:  # of samples on request
                self._save_and_stop(done, before)
            except Unscored:
                self._save_unless_saved(done, before)
                raise
            if wanted.stop:
                self._save_and_stop(done, before)
            if wanted.save or wanted.due or due:
                saved = self._save(done, before, by_time=not (wanted.save or due))
                if saved.stop:
                    self._stop(done, saved)
                due = False
            if wanted.save:
                requests.served("save", done)
            if not requests.paused:
                return

    def _save_and_stop(self, done: int, before: dict[str, Any], *, owes_evaluation: bool = False) -> NoReturn:
        """Save at a step boundary, and stop.

        Raises:
            Stopped: after saving.
            StageError: the disk is full.
        """
        self._stop(done, self._save(done, before, owes_evaluation=owes_evaluation, stop=True))

    def _stop(self, done: int, saved: Saved) -> NoReturn:
        """Stop at a step boundary after a save; raises as :meth:`_save_and_stop`."""
        self.session.requests.served("stop", done)
        if not saved.saved:
            raise self.saver.lost(done, self.session.run.checkpoints)
        raise Stopped

    def _save(
        self,
        done: int,
        before: dict[str, Any],
        *,
        owes_evaluation: bool = False,
        by_time: bool = False,
        stop: bool = False,
    ) -> Saved:
        """Write a checkpoint on rank 0; on a full disk, wait for room, unless the run is to ``stop`` after it."""
        phase_before = self.reporter.current_phase
        self.reporter.phase("save")
        timer = self.session.requests.timer

        def write() -> None:
            keep = checkpoint.Retention.of(self.recipe)
            facts = Evaluations(before=before, best=self.best, owed=owes_evaluation)
            self.trainables.save(self.reporter, done, facts, keep, self.health.state, by_time=by_time)

        def save() -> bool:
            if timer is not None:
                timer.begin()  # what it waits for room is no cost of a save
            saved = self.saver.save(done, write) if self.session.is_main else True
            return not self.session.requests.agree(not saved).failed

        saved = until_saved(self.session.requests, self.reporter, done, save, stop=stop)
        if timer is not None and self.session.is_main:
            size = checkpoint.size(self.session.run.checkpoints, done) if saved.saved else None
            timer.end(done, size, last=saved.stop)
        if self.session.requests.paused:
            self.reporter.phase(phase_before)
        return saved

    def _save_unless_saved(self, done: int, before: dict[str, Any], *, owes_evaluation: bool = False) -> None:
        """Write a checkpoint of a step that has none, before an error ends the run."""
        newest = newest_sealed(self.session.run.checkpoints)
        self.session.state.wait_for_everyone()  # all have looked
        if done and (newest is None or checkpoint.step_of(newest) != done):
            self._save(done, before, owes_evaluation=owes_evaluation, stop=True)

    def _evaluate_or_stop(self, done: int, when: When, before: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.evaluate(done, when)
        except Abandoned:
            self._save_and_stop(done, before, owes_evaluation=when == "during")
        except Unscored:
            self._save_unless_saved(done, before, owes_evaluation=when == "during")
            raise

    def _compare_or_stop(self, before: dict[str, Any], after: dict[str, Any]) -> list[Row]:
        """Build the table that compares PPO with its base; empty where the recipe asks for none."""
        if not (self.recipe.eval_temperatures or self.recipe.eval_best_of):
            return []
        self.reporter.phase("evaluate")
        try:
            return self.evaluator.compare(before["rows"], after["rows"], self.best)
        except Abandoned:
            self._save_and_stop(self.steps, before)
        except StageError:  # the policy was evaluated, and is sound
            self._save_unless_saved(self.steps, before)
            raise

    def _remember(self, step: int, during: dict[str, Any], before: dict[str, Any]) -> None:
        """Keep an evaluation's summary if its objective is the best so far."""
        row = summary(self.evaluator.trained, during["rows"], before["rows"])
        objective = held_out_objective(during["rows"], self.recipe.kl_coef)
        row |= {"name": f"{row['name']}, step {step}", "step": step, "objective": objective}
        if self.best is None or row["objective"] > self.best["objective"]:
            self.best = row

    def _roll_back(self, done: int) -> int:
        """Roll back to the newest verified checkpoint, or the start, with half the learning rate; return its step."""
        rate = schedule.peak(self.trainables.scheduler) / 2
        saved, skipped = checkpoint.newest(self.session.run.checkpoints)
        for reason in skipped:
            self.reporter.health(reason)
        if saved:
            progress = self.trainables.load(saved)
            start, self.best, health = progress.step, progress.best, progress.health
        else:
            self.trainables.restore(self.start)
            start, self.best, health = 0, None, None
        self.health.resume(start, health)
        schedule.set_peak(self.trainables.optimizer, self.trainables.scheduler, rate)
        self._note(learning_rate=rate, at_step=start, rollbacks=self.rollback_policy.rollbacks)
        self.reporter.forget_samples_after(start)
        self.reporter.health(
            f"rolled back from step {done} to {saved.name if saved else 'the start'}, rollback "
            f"{self.rollback_policy.so_far}: continuing with learning_rate {rate:g} (halved)"
        )
        self.session.state.wait_for_everyone()
        return start

    def _note(self, **changes: Any) -> None:
        """Record changes for later attempts; rank 0 only."""
        if self.session.is_main:
            self.session.restarts.note(**changes)

    def _change(self, change: Change) -> str:
        """Apply a new learning rate or KL coefficient; both are part of every later checkpoint."""
        if change.key == "kl_coef":
            self.controller.coef = change.value
            adapts = ", and adapts from there" if self.recipe.adap_kl_ctrl else ""
            return f"`kl_coef` is {change.value:g} now{adapts}"
        now = schedule.set_peak(self.trainables.optimizer, self.trainables.scheduler, change.value)
        return f"`learning_rate` is {change.value:g} now; the schedule makes it {now:g} for the next step"

    def _sample_on_request(self, done: int) -> None:
        self.evaluate(done, "asked")

    def _save_adapter(self) -> None:
        self.reporter.phase("save")

        def write() -> None:
            head = {name: value.detach().cpu() for name, value in self.base.value_head.state_dict().items()}
            models.save_adapter(
                self.base.model,
                self.tokenizer,
                self.session.run.adapter,
                self.recipe,
                self.encoder.format,
                self.base.saved,
                self.encoder.stop_ids,
                **({VALUE_FILE: head} if self.base.has_critic else {}),
            )

        write_result(self.session.requests, self.reporter, self.steps, write)
        self.session.state.wait_for_everyone()
