"""The PPO stage: 1 sample · 2 score · 3 reference · 4 rewards · 5 advantages · 6 update."""

import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import get_scheduler

from ...contract.errors import StageError
from ...contract.recipe import PPORecipe
from ...contract.stages import Split
from ...data import demo
from ...data.kinds import DEMO
from .. import checkpoint, models, optimizers
from ..requests import Stopped
from ..session import Session
from . import canary, losses
from .prompts import Prompt, Prompts, load_prompts
from .reward_scaling import RewardScaling
from .rewards import PREFIX, Rewards
from .rollout import Rollout, pad_tokens, policy_outputs, sequence_sum
from .sampling import Noise, draw_noise, sample
from .scorer import Answer
from .shared_base import VALUE_FILE, SharedBase
from .state import Trainables
from .update import Updater, explained_variance, final_scores, targets

_EVALUATION_STEP = 2**31  # noise of every evaluation: no training step has this number

When = Literal["before", "during", "after"]
"""Of an evaluation: before the first step, between two steps, after the last one."""


def run(recipe: PPORecipe, session: Session) -> dict[str, Any]:
    """Run the stage to its end; returns the facts for ``result.json``.

    Raises:
        StackllamaError: a model or the data cannot be used.
        Stopped: asked to stop, after saving.
    """
    session.reporter.phase("load")
    return PPO(recipe, session).train()


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
        self.base = SharedBase(recipe, session.device)
        self.rewards = Rewards(recipe, self.base, self.tokenizer, self.reporter)
        if recipe.value_head_init == "reward":
            self._start_value_as_reward()
        if notice := models.padding_notice(self.tokenizer):
            self.reporter.health(notice)
        self.prompts = Prompts(self._load(recipe.dataset_train_split, recipe.max_train_samples), recipe.seed)
        self.held_out = self._load(recipe.dataset_test_split, recipe.max_eval_samples)
        optimizer = optimizers.build(recipe, self.base.trainable())
        scheduler = get_scheduler(recipe.lr_scheduler_type, optimizer, recipe.warmup_steps, recipe.max_steps)
        target = recipe.target if recipe.adap_kl_ctrl else None
        self.controller = losses.KLController(recipe.kl_coef, target, recipe.horizon)
        self.scaling = RewardScaling(recipe.normalize_reward, recipe.cliprange_reward, session.reduce)
        self.trainables = Trainables(self.base, optimizer, scheduler, self.controller, self.scaling)
        self.updater = Updater(recipe, self.base, optimizer, session.reduce)

    def train(self) -> dict[str, Any]:
        """All steps, with the same held-out questions answered before, in between where asked for, and after.

        Raises:
            Stopped: asked to stop, after saving.
        """
        recipe, start = self.recipe, 0
        self.session.accelerator.init_trackers("stackllama")
        saved = checkpoint.to_resume(self.reporter)
        if saved:
            progress = self.trainables.load(saved)
            start, before = progress.step, progress.before
            self.reporter.forget_samples_after(start)
        else:
            if canary.asked():
                self._rehearse()
            self.reporter.forget_samples_after(-1)  # an attempt that saved nothing is made again from its beginning
            before = self.evaluate(0, "before")
        for step in range(start, recipe.max_steps):
            metrics = self.step(step)
            done = step + 1
            self.reporter.progress(done, recipe.max_steps)
            if done % recipe.logging_steps == 0 or done in (1, recipe.max_steps):
                self.reporter.metrics(done, metrics)
                self.session.accelerator.log(metrics, step=done)  # to `report_to`, if anything
                self.reporter.memory()
            if recipe.eval_steps and done % recipe.eval_steps == 0 and done < recipe.max_steps:
                self.evaluate(done, "during")  # before the checkpoint of this step: a resumed run has it already
            self._save_or_stop(done, before)
        after = self.evaluate(recipe.max_steps, "after")
        self._save_adapter()
        self.session.accelerator.end_training()
        return {
            "before": _figures(before), "after": _figures(after), "steps": recipe.max_steps,
            "samples": _side_by_side(before, after),
        }  # fmt: skip

    def step(self, step: int) -> dict[str, float]:
        """One PPO step; returns its metrics."""
        times = [time.perf_counter()]
        self.reporter.phase("rollout")
        prompts, noise_at = self._batch(step)
        responses = self._sample(prompts, step, noise_at)  # 1
        times.append(time.perf_counter())
        self.reporter.phase("score")
        rollout = self._score(prompts, responses)  # 2 and 3
        times.append(time.perf_counter())
        self.reporter.phase("update")
        scaled, scale = self.scaling(rollout.scores)
        scores = final_scores(self.recipe, scaled, rollout.answers)
        goal = targets(self.recipe, rollout, scores, self.controller.coef, self.session.reduce)  # 4 and 5
        shuffle = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        statistics = self.updater.update(rollout, goal, shuffle)  # 6
        metrics = self._objective(rollout, scores, goal.kl, step) | scale | statistics.metrics()
        metrics["val/var_explained"] = explained_variance(
            rollout.old.values, goal.returns, rollout.mask, self.session.reduce
        )
        if statistics.skipped:
            self.reporter.health(f"step {step + 1}: {statistics.skipped} mini-batches skipped (ratio or gradient)")
        self.trainables.scheduler.step()
        times.append(time.perf_counter())
        metrics |= {
            "time/rollout": times[1] - times[0],
            "time/score": times[2] - times[1],
            "time/update": times[3] - times[2],
            "tokens_per_second": metrics["val/num_tokens"] / (times[3] - times[0]),
        }
        return metrics

    def _rehearse(self) -> None:
        """The worst case once, of which nothing stays; see :mod:`.canary`."""
        recipe, reporter = self.recipe, self.reporter
        prompts = [self.prompts.at(canary.longest(self.prompts))] * recipe.local_batch_size
        reporter.phase("rollout")
        responses = self._respond(prompts, canary.noise(recipe), canary.NO_END)
        reporter.phase("score")
        rollout = self._score(prompts, responses)
        with canary.untouched(self.trainables):
            reporter.phase("update")
            scores = final_scores(recipe, rollout.scores, rollout.answers)  # of which no statistics are kept
            goal = targets(recipe, rollout, scores, self.controller.coef, self.session.reduce)
            self.updater.update(rollout, goal, torch.Generator().manual_seed(recipe.seed))
            reporter.phase("save")
            if self.session.is_main:
                kept = checkpoint.Retention.of(recipe).at_most(recipe.max_steps)
                canary.write_checkpoint(self.trainables, self.session.run, responses, kept)
            self.session.state.wait_for_everyone()
        reporter.health(
            f"canary: {len(prompts)} prompts of {len(prompts[0].ids)} tokens, {len(responses[0])} tokens answered, one "
            "update and one checkpoint went through"
        )

    @torch.no_grad()
    def evaluate(self, step: int, when: When) -> dict[str, Any]:
        """Answer the held-out questions with noise that is the same each time, and report means and first rows.

        Args:
            step: PPO steps done.
            when: recorded with the rows.

        Returns:
            The rows of all ranks, in the order of the questions.
        """
        self.reporter.phase("evaluate")
        mine = range(self.session.rank, len(self.held_out), self.session.world_size)
        indices = mine or range(1)  # every rank takes part in the sums over all of them
        prompts = [self.held_out[index] for index in indices]
        rollout = self._score(prompts, self._sample(prompts, _EVALUATION_STEP, indices))
        kl = sequence_sum(rollout.old.logprobs - rollout.ref_logprobs, rollout.mask)
        rows = self.session.gather(self._rows(rollout, kl)[: len(mine)])
        marks = {"split": Split.EVALUATION.value, "when": when}
        self.reporter.samples(step, [marks | row for row in rows[: self.recipe.num_sample_generations]])
        means = {f"eval/{name}": value for name, value in _figures({"rows": rows}).items() if name != "questions"}
        self.reporter.metrics(step, means)
        self.session.accelerator.log(means, step=step)
        return {"rows": rows}

    def _load(self, split: str, limit: int | None) -> list[Prompt]:
        return load_prompts(self.recipe, split, limit, self.tokenizer, self.reporter)

    def _batch(self, step: int) -> tuple[list[Prompt], range]:
        """This rank's prompts of a step, and their positions in the batch over all ranks: every world-size-th."""
        total = self.recipe.local_batch_size * self.session.world_size
        mine = range(self.session.rank, total, self.session.world_size)
        return [self.prompts.at(step * total + index) for index in mine], mine

    def _sample(self, prompts: Sequence[Prompt], step: int, indices: Sequence[int]) -> list[list[int]]:
        """1 sample."""
        recipe = self.recipe
        lengths = (recipe.output_min_length, recipe.output_max_length)
        noise = [draw_noise(recipe.seed, step, index, lengths) for index in indices]
        return self._respond(prompts, noise, models.eos_id(self.tokenizer))

    def _respond(self, prompts: Sequence[Prompt], noise: Sequence[Noise], eos: int) -> list[list[int]]:
        pad, size = models.pad_id(self.tokenizer), self.recipe.local_rollout_forward_batch_size
        responses: list[list[int]] = []
        for start in range(0, len(prompts), size):
            ids = [prompt.ids for prompt in prompts[start : start + size]]
            responses += sample(self.base, ids, noise[start : start + size], eos, pad)
        return responses

    @torch.no_grad()
    def _score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> Rollout:
        """2 score and 3 reference, and the policy's own log-probabilities and values."""
        recipe = self.recipe
        pad = models.pad_id(self.tokenizer)
        ids, attention, mask = pad_tokens([p.ids for p in prompts], responses, pad, self.base.device)
        answers = [self._answer(prompt.question, response) for prompt, response in zip(prompts, responses, strict=True)]
        width, size = mask.shape[1], recipe.local_rollout_forward_batch_size
        opinions = self._judge(answers, responses)
        scores = self.rewards.total(opinions)
        with self.base.reference():
            reference = policy_outputs(self.base, ids, attention, width, size)
        old = policy_outputs(self.base, ids, attention, width, recipe.per_device_train_batch_size)
        self._check_finite(scores, losses.masked(old.logprobs, mask), losses.masked(reference.logprobs, mask))
        return Rollout(
            input_ids=ids,
            attention_mask=attention,
            mask=mask,
            answers=answers,
            old=old,
            ref_logprobs=reference.logprobs,
            scores=scores,
            opinions=opinions,
        )

    def _judge(self, answers: Sequence[Answer], responses: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """2 score. Where a function of the user's fails on one rank, all of them end with what it said.

        Raises:
            StageError: it failed.
        """
        if not self.recipe.reward_fn:
            return self.rewards.parts(answers, responses)
        opinions: dict[str, Tensor] = {}
        problem = ""
        try:
            opinions = self.rewards.parts(answers, responses)
        except StageError as error:
            problem = str(error)
        if problems := [text for text in self.session.gather([problem]) if text]:
            raise StageError(problems[0])
        return opinions

    def _check_finite(self, *tensors: Tensor) -> None:
        """On all ranks alike.

        Raises:
            StageError: a score or log-probability is NaN or infinite; nothing of it was applied.
        """
        bad = torch.stack([(~torch.isfinite(tensor)).sum() for tensor in tensors])
        scores, policy, reference = self.session.reduce(bad).tolist()
        if scores or policy or reference:
            raise StageError(
                f"NaN or infinity in {scores} scores, {policy} log-probabilities of the policy and {reference} of the "
                "reference. Use `bf16: true` or `dtype: bfloat16` instead of float16, or lower `learning_rate`; "
                "checkpoints are untouched."
            )

    def _start_value_as_reward(self) -> None:
        weight = getattr(self.rewards.head, "weight", None)
        if weight is None or weight.shape != self.base.value_head.weight.shape:
            raise StageError(
                "`value_head_init: reward` needs a reward model with one linear score head of the policy's hidden "
                "width; use `value_head_init: zero`."
            )
        self.base.value_head.weight.data.copy_(weight)

    def _answer(self, question: str, response: Sequence[int]) -> Answer:
        ended = response[-1] == models.eos_id(self.tokenizer)
        text = self.tokenizer.decode(list(response[:-1] if ended else response), skip_special_tokens=True)
        return Answer(question, str(text).strip(), ended)

    def _objective(self, rollout: Rollout, scores: Tensor, kl: Tensor, step: int) -> dict[str, float]:
        """What PPO optimises, averaged over the responses of all ranks; feeds the KL controller.

        Args:
            scores: as PPO sees them, ``[B]``.
            kl: ``[B, R]``.
        """
        recipe = self.recipe
        kl_sum = sequence_sum(kl, rollout.mask)
        rows = self._rows(rollout, kl_sum)
        columns = torch.stack(
            [
                rollout.scores,
                kl_sum,
                sequence_sum(-rollout.old.logprobs, rollout.mask),
                rollout.mask.sum(1),
                torch.tensor([float(a.ended) for a in rollout.answers], device=kl.device),
                torch.ones_like(kl_sum),
                scores,
                torch.tensor([row.get("utility", 0.0) for row in rows], device=kl.device),
                *rollout.opinions.values(),
            ]
        ).sum(1)
        sums: list[float] = self.session.reduce(columns).tolist()
        score, total_kl, entropy, length, ended, count, final, utility, *opinions = sums
        coef = self.controller.coef
        metrics = {
            "objective/scores": score / count,
            "objective/kl": total_kl / count,
            "objective/kl_coef": coef,
            "objective/entropy": entropy / count,
            "objective/rlhf_reward": (final - coef * total_kl) / count,
            "objective/non_score_reward": -coef * total_kl / count,
            "val/num_eos_tokens": ended,
            "val/num_tokens": length,
            "response_length": length / count,
            "learning_rate": self.trainables.scheduler.get_last_lr()[0],
            "episode": (step + 1) * count,
        }
        metrics |= {name: opinion / count for name, opinion in zip(rollout.opinions, opinions, strict=True)}
        if recipe.dataset_name == DEMO:
            metrics["demo/true_utility"] = utility / count
        self.reporter.samples(step + 1, rows[: recipe.num_sample_generations])
        self.controller.update(total_kl / count, int(count))
        return metrics

    def _rows(self, rollout: Rollout, kl: Tensor) -> list[dict[str, Any]]:
        """One row a response, as in ``samples.jsonl``."""
        rows: list[dict[str, Any]] = []
        lengths = rollout.mask.sum(1).int().tolist()
        opinions = {name: values.tolist() for name, values in rollout.opinions.items()}
        columns = zip(rollout.answers, rollout.scores.tolist(), kl.tolist(), lengths, strict=True)
        for index, (answer, reward, response_kl, length) in enumerate(columns):
            row = {
                "question": answer.question, "response": answer.text, "reward": reward, "kl": response_kl,
                "length": length, "ended": answer.ended,
                "rewards": {name.removeprefix(PREFIX): values[index] for name, values in opinions.items()},
            }  # fmt: skip
            if self.recipe.dataset_name == DEMO:
                row["utility"] = demo.utility(answer.question, answer.text)
            rows.append(row)
        return rows

    def _save_or_stop(self, done: int, before: dict[str, Any]) -> None:
        """Serve requests and the schedule of checkpoints at a step boundary."""
        recipe = self.recipe
        wanted = self.session.requests.poll()
        stopping = "stop" in wanted and done < recipe.max_steps
        if wanted or (recipe.save_steps and done % recipe.save_steps == 0):
            self.reporter.phase("save")
            if self.session.is_main:
                self.trainables.save(self.reporter, done, before, checkpoint.Retention.of(recipe))
                self.session.requests.saved()
            self.session.state.wait_for_everyone()
        if stopping:
            raise Stopped

    def _save_adapter(self) -> None:
        self.reporter.phase("save")
        if self.session.is_main:
            critic = {name: value.detach().cpu() for name, value in self.base.value_head.state_dict().items()}
            models.save_adapter(
                self.base.model,
                self.tokenizer,
                self.session.run.adapter,
                self.recipe,
                self.base.saved,
                **{VALUE_FILE: critic},
            )
        self.session.state.wait_for_everyone()


def _figures(evaluation: dict[str, Any]) -> dict[str, float]:
    rows: list[dict[str, Any]] = evaluation["rows"]
    names = {"mean_reward": "reward", "true_utility": "utility", "kl": "kl", "response_length": "length"}
    figures = {name: sum(row[key] for row in rows) / len(rows) for name, key in names.items() if key in rows[0]}
    figures |= {f"{PREFIX}{name}": sum(row["rewards"][name] for row in rows) / len(rows) for name in rows[0]["rewards"]}
    return figures | {"questions": len(rows)}


def _side_by_side(before: dict[str, Any], after: dict[str, Any], count: int = 3) -> list[dict[str, Any]]:
    """The first questions whose answer changed (then others), answered before and after."""
    both = list(zip(before["rows"], after["rows"], strict=True))
    both.sort(key=lambda pair: pair[0]["response"] == pair[1]["response"])  # stable: changed ones first
    return [
        {"question": old["question"]}
        | {
            f"{name}_{when}" if name != "response" else when: row[name]
            for when, row in (("before", old), ("after", new))
            for name in ("response", "reward", "utility")
            if name in row
        }
        for old, new in both[:count]
    ]
