"""Evaluation metrics over all tokens or all pairs, not means of batch means.

The mean of the batches' means gives a token of a short batch more weight than one of a long batch, so that it changes
with ``per_device_eval_batch_size`` and with the number of processes (transformers#24839, #39241). Here every row's sums
are added up over the whole evaluation and over all ranks; rows that ranks share to fill the last batch count once.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers.trainer_utils import EvalLoopOutput

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import Trainer

    _Base = Any  # TRL's trainers come after it
else:
    _Base = object


class TokenWeighted(_Base):
    """Mix-in before TRL's SFTTrainer: evaluation metrics per token."""

    _sums: list[Tensor]

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, None, None]:
        """Keep a batch's sums for :meth:`evaluation_loop`; return its mean loss."""
        inputs = self._prepare_inputs(inputs)
        inputs.pop("num_tokens", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        rows = torch.stack(
            [
                one.float().sum(dim=1)
                for one in (-outputs.log_probs, outputs.label_mask, outputs.entropy, outputs.is_top1)
            ],
            dim=1,
        )  # [B, 4]
        gathered: Any = self.accelerator.gather_for_metrics(rows)
        self._sums.append(gathered.double().sum(dim=0).cpu())
        nll, tokens = rows.sum(dim=0)[:2]
        return nll / tokens.clamp(min=1), None, None

    def evaluation_loop(self, *arguments: Any, metric_key_prefix: str = "eval", **named: Any) -> EvalLoopOutput:
        """Evaluate, with metrics over all tokens."""
        self._sums = []
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **named)
        nll, tokens, entropy, correct = torch.stack(self._sums).sum(dim=0).tolist()
        tokens = max(tokens, 1.0)
        metrics = {"loss": nll / tokens, "entropy": entropy / tokens, "mean_token_accuracy": correct / tokens}
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output


class PairWeighted(_Base):
    """Mix-in before TRL's RewardTrainer: evaluation metrics per pair."""

    def evaluation_loop(
        self, dataloader: "DataLoader[Any]", *arguments: Any, metric_key_prefix: str = "eval", **named: Any
    ) -> EvalLoopOutput:
        """Evaluate: :func:`pair_metrics` of all pairs."""

        def each_batch() -> None:
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

        scores = pair_scores(self, dataloader, each_batch)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in pair_metrics(scores).items()}
        return EvalLoopOutput(predictions=scores.numpy(), label_ids=None, metrics=metrics, num_samples=len(scores))


class PreferenceWeighted(_Base):
    """Mix-in before TRL's DPOTrainer: evaluation metrics per pair, from the rewards that DPO implies.

    A response's reward is β · (log π(response) − log π_ref(response)), up to a term of the prompt that both responses
    of a pair share (arXiv:2305.18290, eq. 5).
    """

    def evaluation_loop(
        self, dataloader: "DataLoader[Any]", *arguments: Any, metric_key_prefix: str = "eval", **named: Any
    ) -> EvalLoopOutput:
        """Evaluate: metrics of all pairs under TRL's names, and the loss of ``loss_type: sigmoid``, whatever trains."""
        self.model.eval()
        rewards: list[Tensor] = []
        with torch.no_grad():
            for batch in dataloader:
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
                rewards.append(self.accelerator.gather_for_metrics(self._rewards(self._prepare_inputs(batch))).cpu())
        scores = torch.cat(rewards)
        found = pair_metrics(scores)
        metrics = {
            "loss": found["loss"],
            "rewards/accuracies": found["accuracy"],
            "rewards/margins": found["margin"],
            "rewards/chosen": float(scores[:, 0].mean()),
            "rewards/rejected": float(scores[:, 1].mean()),
            "pairs": found["pairs"],
            "ties": found["ties"],
        }
        named_metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(
            predictions=scores.numpy(), label_ids=None, metrics=named_metrics, num_samples=len(scores)
        )

    def _rewards(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the implied rewards ``[B, 2]`` of a batch, the chosen response's first."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        passed = {key: value for key, value in inputs.items() if key != "completion_mask"}
        with self.compute_loss_context_manager():
            outputs: Any = self.model(**passed, labels=labels, use_cache=False, fused_lm_head=True)
        policy = torch.stack(outputs.log_probs.float().sum(dim=1).chunk(2), dim=1)
        reference = torch.stack([one.float() for one in self.compute_ref_log_probs(self.model, inputs)], dim=1)
        return self.beta * (policy - reference)


def pair_scores(trainer: "Trainer", batches: "DataLoader[Any]", each_batch: Callable[[], None]) -> Tensor:
    """Score every pair, over all ranks; ``each_batch`` is called on every rank before each batch.

    Returns:
        float32 ``[N, 2]`` on the CPU: the better text's score, the worse text's.
    """
    model: Any = trainer.model
    model.eval()
    scores: list[Tensor] = []
    with torch.no_grad():
        for batch in batches:
            each_batch()
            inputs = trainer._prepare_inputs(batch)
            with trainer.compute_loss_context_manager():
                both = model(**inputs, use_cache=False).logits.squeeze(-1).float()  # [2B]: better, then worse
            pairs = torch.stack(both.chunk(2), dim=1)
            gathered: Any = trainer.accelerator.gather_for_metrics(pairs)
            scores.append(gathered.cpu())
    return torch.cat(scores)


def pair_metrics(scores: Tensor) -> dict[str, float]:
    """Compute metrics of scored pairs.

    Args:
        scores: ``[N, 2]``, the better text's score first.

    Returns:
        ``accuracy`` over the pairs whose scores differ, ``ties`` (equal scores, counted apart), ``margin`` (mean
        difference), ``loss`` (Bradley-Terry: −log σ(difference)), ``mean_reward`` and the number of ``pairs``.
    """
    margin = scores[:, 0] - scores[:, 1]
    ties = int((margin == 0).sum())
    return {
        "accuracy": int((margin > 0).sum()) / max(margin.numel() - ties, 1),
        "margin": float(margin.mean()),
        "loss": float(-logsigmoid(margin).mean()),
        "mean_reward": float(scores.mean()),
        "pairs": margin.numel(),
        "ties": ties,
    }
