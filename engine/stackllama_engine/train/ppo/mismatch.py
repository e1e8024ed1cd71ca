"""Check that the sampler draws from the policy that is trained.

The sampler's log-probabilities come from a pass of its own: with a cache, the adapter merged into the weights, rows
dropped as they end, or another program's kernels. The learner's come from the pass that the update is compared with.
``val/ratio_first`` sees the learner's alone.
"""

import torch

from ...contract.recipe import PPORecipe
from ..session import Session
from . import losses
from .rollout import Rollout
from .sampling import Responses
from .shared_base import SharedBase

_BOUNDS = {32: 1e-2, 16: 0.5}
"""Largest difference in nats that rounding explains, by bits of the dtype."""


class SamplerCheck:
    """Compares both log-probabilities of every sampled token, over all ranks.

    Args:
        recipe: the PPO recipe.
        session: rank, collectives and reporter.
        base: the policy.
    """

    def __init__(self, recipe: PPORecipe, session: Session, base: SharedBase) -> None:
        self._session = session
        self._bits = 32 if base.base.dtype == torch.float32 and not (recipe.bf16 or recipe.quantised) else 16
        self._way_out = (
            "Set `use_vllm: false`."
            if recipe.use_vllm
            else "Stop the run: this architecture needs a fix before PPO can be trusted with it; please report it."
        )
        self._noticed = False

    def __call__(self, step: int, responses: Responses, rollout: Rollout) -> dict[str, float]:
        """Compute the metrics of a step (a collective).

        Args:
            step: PPO steps done; named in the notice, which comes once.
            responses: of this rank, with the sampler's log-probabilities.
            rollout: of the same responses.
        """
        sampler = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row, dtype=torch.float64) for row in responses.logprobs], batch_first=True
        ).to(rollout.mask.device)  # [B, R]
        learner = rollout.old.logprobs.double()  # [B, R]
        divergence = losses.masked(losses.kl_per_token(sampler, learner, "k3"), rollout.mask).sum()
        total, count = self._session.reduce(torch.stack([divergence, rollout.mask.sum().double()])).tolist()
        apart = losses.masked(sampler - learner, rollout.mask).abs().max()
        difference, kl = float(self._session.largest(apart)), total / count
        bound = _BOUNDS[self._bits]
        if not (self._noticed or difference <= bound):
            self._noticed = True
            self._session.reporter.health(
                f"step {step + 1}: the sampler does not draw from the policy that is trained: their log-probabilities "
                f"of a token differ by up to {difference:.2g} nat (KL {kl:.2g} per token), and {self._bits}-bit "
                f"rounding explains {bound:g}. {self._way_out}"
            )
        return {"sampling/kl_mismatch": kl, "sampling/logprob_difference": difference}
