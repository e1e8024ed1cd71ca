"""PPO against a reward model, policy and reference on one frozen base.

Where it departs from StackLLaMA's PPO (TRL 0.4, April 2023):

- a response ends at its end token or at its drawn length; the published script disabled the end token;
- dropout is off in rollout and update, so that the ratio is exactly 1 at the first mini-batch;
- the value head starts at zero (or as the reward head) instead of at random, and has no dropout;
- each micro-batch's loss is summed over tokens and divided by the mini-batch's token count over all ranks, so that
  accumulation 1 × 8 equals 8 × 1 and two processes × 4 equal one × 8 (with several mini-batches per epoch, each rank
  shuffles its own rows after the first epoch, so then they are equal in distribution only);
- sampling noise is drawn per response from (seed, step, position), so that a resumed run and another number of
  processes see the same noise;
- gradients of the small adapter are summed over ranks by one all-reduce instead of DDP's hooks, which three adapters
  taking turns on one module would confuse;
- the reward model reads prompt and response through text, in the same template and encoding that it was trained on;
- `advantage: rloo | grpo` replaces the critic by groups of responses to one prompt. TRL's RLOO weighs a whole response
  by one ratio, this one every token by its own, as GRPO does: the gradient is the same where the ratio is 1.

One step reads: 1 sample · 2 score · 3 evaluate · 4 rewards · 5 advantages · 6 update (:mod:`.algorithm`).
"""

from .trainer import run

__all__ = ["run"]
