"""The recipe of PPO: how responses are sampled and judged, and how the policy learns from them."""

import re
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from .recipe_common import (
    LORA,
    OPTIM_HELP,
    AtLeastOne,
    NotNegative,
    Optim,
    Positive,
    Scheduler,
    Steps,
    TrainRecipe,
    about,
)
from .stages import Split, Stage

KlEstimator = Literal["k1", "k2", "k3"]
_STACKLLAMA = "https://huggingface.co/blog/stackllama"
_TRL_VLLM = "https://huggingface.co/docs/trl/vllm_integration"
_N_DETAILS = "https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo"
_DEFAULT_EOS_PENALTY = 1.0  # as TRL's PPO scripts have it
FUNCTION = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
"""``package.module:function``."""
REWARD_ARGUMENTS = frozenset({"questions", "responses"})
"""The keywords that a ``reward_fn`` is called with, a list of texts each."""
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM can make room for (its ``config/lora.py``)."""
VLLM_LEAST_TEMPERATURE = 0.01
"""vLLM raises what is lower to this (its ``sampling_params.py``)."""


Rate = Annotated[float, Meta(gt=0, le=1)]
Several = Annotated[int, Meta(ge=2)]
Limits = Annotated[list[AtLeastOne], Meta(min_length=2, max_length=2)]


class PPORecipe(TrainRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PPO against the reward model, policy and reference on one frozen base."""

    stage: ClassVar[Stage] = Stage.PPO

    dataset_train_split: Annotated[str, about("Split this stage trains on.", min_length=1)] = Split.RL.value
    reward_model_path: Annotated[
        str | None,
        about(
            "A finished reward run, an adapter directory, or a sequence-classification model; empty: `reward_fn` alone."
        ),
    ] = None
    reward_model_weight: Annotated[float, about("The reward model's share of the score: a factor of its own.")] = 1.0
    reward_fn: Annotated[
        str | None,
        about(
            "`package.module:function` of yours, called with `questions` and `responses`; one number each. "
            "Looked for in the working directory, in PYTHONPATH and among installed packages."
        ),
    ] = None
    reward_fn_path: Annotated[
        str | None, about("Directory that holds the module of `reward_fn`; empty: where it is found at launch.")
    ] = None
    reward_fn_weight: Annotated[float, about("The function's share of the score: a factor of its own.")] = 1.0
    length_penalty: Annotated[
        NotNegative, about("Subtracted from the score for every token beyond `length_penalty_start`.")
    ] = 0.0
    length_penalty_start: Annotated[int, about("Tokens of a response without `length_penalty`.", ge=0)] = 0
    repetition_penalty: Annotated[
        NotNegative,
        about("Subtracted from the score × the share of repeated n-grams (1 − distinct-n, arXiv:1510.03055)."),
    ] = 0.0
    repetition_n_grams: Annotated[int, about("Tokens of an n-gram of `repetition_penalty`.", ge=1)] = 3
    lora_dropout: Annotated[float, about("Must be 0: PPO compares probabilities before and after.", ge=0, lt=1)] = 0.0
    policy_adapter_path: Annotated[
        str | None, about("Continue this adapter; a frozen copy of it becomes the reference.")
    ] = None
    max_train_samples: Annotated[AtLeastOne | None, about("Use only the first N questions.")] = 50_000
    max_eval_samples: Annotated[
        AtLeastOne | None, about("Held-out questions answered before and after (`eval_steps`: and in between).")
    ] = 64
    optim: Annotated[Optim, about(OPTIM_HELP)] = "adamw_torch"
    learning_rate: Annotated[
        float, about(f"Peak learning rate; LoRA takes ten times that of full training ({LORA}).", gt=0, le=1)
    ] = 3e-5
    value_learning_rate: Annotated[
        Rate | None, about("Peak learning rate of the value head and its adapter; empty: `learning_rate`.")
    ] = None
    lr_scheduler_type: Annotated[
        Scheduler, about(f"Learning-rate schedule over PPO steps; `linear` anneals to 0 ({_N_DETAILS}).")
    ] = "constant"

    # batch: per_device_train_batch_size × gradient_accumulation_steps × num_mini_batches = responses per device
    per_device_train_batch_size: Annotated[
        int, about("Responses per device in one micro-batch of the update.", ge=1)
    ] = 4
    gradient_accumulation_steps: Annotated[int, about("Micro-batches added up before one optimizer step.", ge=1)] = 8
    num_mini_batches: Annotated[
        int,
        about(
            "Optimizer steps per PPO epoch; `per_device_train_batch_size` × `gradient_accumulation_steps` × this is "
            "the number of responses per device and step.",
            ge=1,
        ),
    ] = 2
    num_ppo_epochs: Annotated[int, about("Passes over one rollout (arXiv:1707.06347, algorithm 1).", ge=1)] = 4
    local_rollout_forward_batch_size: Annotated[
        int, about("Responses per device in sampling, reference and reward forwards.", ge=1)
    ] = 16
    max_steps: Annotated[int, about("PPO steps (rollout + update); -1: `num_train_epochs` decides.", ge=-1)] = -1
    num_train_epochs: Annotated[float, about("Passes over the prompts when `max_steps` is -1.", gt=0)] = 3.0
    total_episodes: Annotated[
        AtLeastOne | None,
        about("Responses in all, over all processes; given, it decides over `max_steps` and `num_train_epochs`."),
    ] = None

    # sampling
    max_prompt_length: Annotated[int, about("Prompts with as many tokens or more are dropped.", ge=1)] = 512
    response_length: Annotated[
        int, about("Maximum number of tokens per response (https://huggingface.co/docs/trl/ppo_trainer).", ge=1)
    ] = 128
    random_length_limits: Annotated[
        Limits | None,
        about(
            f"Instead: draw each response's maximum from [low, high), as published for a base that never ends an "
            f"answer ({_STACKLLAMA})."
        ),
    ] = None
    temperature: Annotated[
        float,
        about(f"Sampling temperature; also divides the logits of every log-probability ({_N_DETAILS}).", gt=0),
    ] = 1.0
    use_vllm: Annotated[bool, about(f"Sample with vLLM on the GPU that trains: the extra `[vllm]` ({_TRL_VLLM}).")] = (
        False
    )
    vllm_gpu_memory_utilization: Annotated[
        float,
        about(
            f"Share of the GPU that vLLM takes while it samples, its own weights included ({_TRL_VLLM}).", gt=0, lt=1
        ),
    ] = 0.3
    missing_eos_penalty: Annotated[
        NotNegative | Literal["auto"] | None,
        about(
            "Subtract this from the score of a response that never ended (arXiv:2403.17031, the EOS trick); `auto`: "
            f"{_DEFAULT_EOS_PENALTY:g} where a reward model scores, which never saw such a text, else nothing."
        ),
    ] = "auto"
    missing_eos_reward: Annotated[
        float | None,
        about(
            "Or replace the score of a response that never ended by this, after baseline, normalisation and clipping "
            "(arXiv:2403.17031: −1)."
        ),
    ] = None

    # reward and KL
    normalize_reward: Annotated[
        bool,
        about("Subtract the running mean of all scores so far and divide by their deviation (arXiv:2307.04964)."),
    ] = False
    cliprange_reward: Annotated[
        Positive | None, about("Clip scores to ± this, after `normalize_reward` (arXiv:2307.04964, section 5.3.1).")
    ] = None
    reward_baseline: Annotated[
        float, about(f"Subtracted from every score, after normalisation and clipping ({_STACKLLAMA}).")
    ] = 0.0
    kl_coef: Annotated[float, about("Initial KL coefficient (arXiv:1909.08593, section 2.2).", ge=0)] = 0.2
    kl_estimator: Annotated[
        KlEstimator,
        about(
            "Per-token KL estimator of the penalty (http://joschu.net/blog/kl-approx.html); the gradient of k1 alone "
            "is unbiased."
        ),
    ] = "k1"
    adap_kl_ctrl: Annotated[bool, about("Adapt the KL coefficient (arXiv:1909.08593, section 2.2).")] = True
    target: Annotated[
        float, about("KL per response that the adaptive controller aims at (arXiv:1909.08593, section 2.2).", gt=0)
    ] = 6.0
    horizon: Annotated[
        int, about("Responses over which the controller adapts (arXiv:1909.08593, section 2.2).", ge=1)
    ] = 10_000

    # PPO
    gamma: Annotated[float, about("Discount of GAE (arXiv:1506.02438).", ge=0, le=1)] = 1.0
    lam: Annotated[float, about("GAE lambda (arXiv:1506.02438).", ge=0, le=1)] = 0.95
    whiten_rewards: Annotated[
        bool, about(f"Whiten the per-token rewards of all ranks (mean kept) before GAE ({_N_DETAILS}).")
    ] = False
    whiten_advantages: Annotated[bool, about(f"Whiten the advantages of all tokens of all ranks ({_N_DETAILS}).")] = (
        True
    )
    cliprange: Annotated[float, about("Clip range of the policy ratio (arXiv:1707.06347).", gt=0)] = 0.2
    cliprange_value: Annotated[
        float, about(f"Clip range of the value around that of the rollout ({_N_DETAILS}).", gt=0)
    ] = 0.2
    vf_coef: Annotated[float, about("Weight of the value loss (arXiv:1707.06347, eq. 9).", ge=0)] = 0.1
    ent_coef: Annotated[
        float, about("Weight of the entropy bonus, 0: none, which is cheaper (arXiv:1707.06347, eq. 9).", ge=0)
    ] = 0.0
    early_stopping: Annotated[
        bool,
        about(
            "Leave the epochs of a rollout when its policy KL exceeds 1.5 × target_kl "
            "(https://spinningup.openai.com/en/latest/algorithms/ppo.html)."
        ),
    ] = True
    target_kl: Annotated[
        float,
        about(
            "Policy KL of one rollout for `early_stopping` "
            "(https://spinningup.openai.com/en/latest/algorithms/ppo.html).",
            gt=0,
        ),
    ] = 0.1
    ratio_threshold: Annotated[
        float, about(f"Skip a mini-batch whose mean ratio exceeds this: loss spikes ({_STACKLLAMA}).", gt=1)
    ] = 10.0
    value_adapter: Annotated[
        bool,
        about(
            "The critic has an adapter of its own on the same base, which costs one more pass; false: its head reads "
            "the policy's hidden states. The value loss never reaches the policy."
        ),
    ] = True
    value_head_init: Annotated[
        Literal["auto", "zero", "reward"],
        about(
            "The critic starts at zero, or as the reward model, adapter and head (arXiv:2403.17031); `auto`: as the "
            "reward model where that was trained on this base and has a critic's adapter to go to."
        ),
    ] = "auto"

    # reporting and checkpoints
    save_steps: Annotated[
        Steps,
        about(
            "Write a checkpoint every N PPO steps; below 1: a share of all steps; 0: only by time (`save_minutes`) and "
            "when stopped."
        ),
    ] = 50
    eval_steps: Annotated[
        Steps,
        about(
            "Answer the held-out questions again every N PPO steps; below 1: a share of all steps; 0: only before and "
            "after."
        ),
    ] = 0
    eval_temperatures: Annotated[
        list[NotNegative],
        about(
            "After training, compare policy and base at these temperatures as well; 0: greedy. A policy that is only "
            "surer of itself is no better than its base at a lower temperature."
        ),
    ] = []  # noqa: RUF012 - msgspec copies it
    eval_best_of: Annotated[
        list[Several],
        about("After training, compare with the best of N responses of the base, by score (arXiv:2112.09332)."),
    ] = []  # noqa: RUF012 - msgspec copies it
    num_sample_generations: Annotated[int, about("Samples recorded each step and evaluation.", ge=0)] = 4

    def __post_init__(self) -> None:
        """Checks between keys; see :class:`TrainRecipe`."""
        super().__post_init__()
        if not self.use_peft:
            raise ValueError("PPO needs `use_peft: true`: policy and reference share one frozen base.")
        if self.lora_dropout:
            raise ValueError(
                "PPO runs without dropout, so that the ratio is 1 where the policy has not changed; "
                "set `lora_dropout: 0`."
            )
        if not (self.reward_model_path or self.reward_fn):
            raise ValueError("`reward_model_path` is required by the ppo recipe, unless `reward_fn` gives the reward.")
        if self.reward_fn is not None and not FUNCTION.fullmatch(self.reward_fn):
            raise ValueError(
                f"`reward_fn: {self.reward_fn}` names no function; write `package.module:function`, such as "
                "`rewards:politeness` for `politeness` in rewards.py."
            )
        if self.value_head_init == "reward" and not self.reward_model_path:
            raise ValueError("`value_head_init: reward` needs `reward_model_path`; use `value_head_init: auto`.")
        if self.fp16:
            raise ValueError("PPO does not scale losses for `fp16`; use `bf16: true`.")
        if self.missing_eos_penalty not in (None, "auto") and self.missing_eos_reward is not None:
            raise ValueError(
                "`missing_eos_penalty` and `missing_eos_reward` are both set; one lowers the score of a response that "
                "never ended, the other replaces it. Leave one of them empty."
            )
        low, high = self.length_limits
        if low >= high:
            raise ValueError(
                f"`random_length_limits: [{low}, {high}]`: the first must be below the second; the maximum length is "
                "drawn from [low, high)."
            )
        if self.use_vllm:
            self._check_vllm()

    def _check_vllm(self) -> None:
        """What vLLM cannot sample from, as the policy that is trained."""
        if self.use_cpu:
            raise ValueError("`use_vllm: true` needs a GPU, and `use_cpu: true` uses none; set one of them to false.")
        if self.quantised or self.model_name_or_path.endswith(".gguf"):
            base = "a .gguf base" if not self.quantised else f"a base in {8 if self.load_in_8bit else 4} bits"
            raise ValueError(
                f"`use_vllm: true` cannot sample from {base}, which vLLM would not read as this engine does; use "
                "safetensors with `load_in_8bit: false`, `load_in_4bit: false` and `dtype: bfloat16`, or "
                "`use_vllm: false`."
            )
        if self.dtype == "float32":
            raise ValueError(
                "`use_vllm: true` needs weights in 16 bits, which is all that vLLM applies LoRA to; use "
                "`dtype: bfloat16`, or `use_vllm: false`."
            )
        if self.lora_r > VLLM_LORA_RANKS[-1]:
            raise ValueError(
                f"`use_vllm: true` takes adapters up to rank {VLLM_LORA_RANKS[-1]}, and `lora_r` is {self.lora_r}; "
                "lower it, or use `use_vllm: false`."
            )
        if self.temperature < VLLM_LEAST_TEMPERATURE:
            raise ValueError(
                f"`use_vllm: true` samples at a `temperature` of {VLLM_LEAST_TEMPERATURE} or more, not at "
                f"{self.temperature:g}; raise it, or use `use_vllm: false`."
            )

    @property
    def length_limits(self) -> tuple[int, int]:
        """A response's maximum length is drawn from ``[low, high)``; high = low + 1 where it is fixed."""
        if self.random_length_limits is not None:
            low, high = self.random_length_limits
            return low, high
        return self.response_length, self.response_length + 1

    @property
    def longest_response(self) -> int:
        """Tokens of the longest response there can be."""
        return self.length_limits[1] - 1

    @property
    def length_key(self) -> str:
        """The key that decides how long a response may be, with its value, for messages."""
        if self.random_length_limits is not None:
            return f"`random_length_limits={self.random_length_limits}`"
        return f"`response_length={self.response_length}`"

    @property
    def eos_penalty(self) -> float:
        """What a response that never ended loses: `missing_eos_penalty`, with `auto` resolved."""
        if self.missing_eos_penalty != "auto":
            return self.missing_eos_penalty or 0.0
        return _DEFAULT_EOS_PENALTY if self.reward_model_path and self.missing_eos_reward is None else 0.0

    @property
    def local_batch_size(self) -> int:
        """Responses per device and PPO step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches
