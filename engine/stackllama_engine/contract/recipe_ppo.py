"""The PPO recipe: sampling of responses, their reward, and the update of the policy."""

import re
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from .health import Rule
from .recipe_common import (
    ACCUMULATION_HELP,
    AUTO_BATCH,
    AUTO_HELP,
    LEARNING_RATE_HELP,
    OPTIM_HELP,
    SPLIT_HELP,
    AtLeastOne,
    BatchSize,
    NotNegative,
    Optim,
    Positive,
    Scheduler,
    Steps,
    TrainRecipe,
    about,
    check_one_limit,
    micro_batch_of,
    steps_of,
)
from .stages import Split, Stage

KlEstimator = Literal["k1", "k2", "k3"]
AdvantageEstimator = Literal["gae", "rloo", "grpo"]
GroupLoss = Literal["grpo", "bnpo", "dr_grpo"]
_STACKLLAMA = "https://huggingface.co/blog/stackllama"
_TRL_VLLM = "https://huggingface.co/docs/trl/vllm_integration"
_N_DETAILS = "https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo"
_TRL_GRPO = "https://huggingface.co/docs/trl/grpo_trainer"
_DEFAULT_EOS_PENALTY = 1.0  # as TRL's PPO scripts have it
_OF_CRITIC = (
    "gamma",
    "lam",
    "whiten_rewards",
    "whiten_advantages",
    "value_learning_rate",
    "cliprange_value",
    "vf_coef",
    "value_adapter",
    "value_adapter_layers",
    "value_head_init",
)
_OF_GROUPS = (
    "num_generations",
    "loss_type",
    "kl_in_loss",
    "mask_truncated_completions",
    "skip_zero_std_groups",
)
FUNCTION = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
"""``package.module:function``."""
REWARD_ARGUMENTS = frozenset({"prompts", "completions", "completion_ids", "questions", "responses"})
"""Keyword arguments of a reward function besides columns and ``reward_kwargs``, a list each."""
PROMPT_COLUMNS = ("question", "prompt", "instruction")
"""Names of a data set's prompt column; a reward function that has such a parameter gets the questions."""
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM allocates adapters for (its ``config/lora.py``)."""
VLLM_LEAST_TEMPERATURE = 0.01
"""Lowest temperature of vLLM, to which it raises lower ones (its ``sampling_params.py``)."""

OWN_COMPONENTS = frozenset({"model", "length_penalty", "repetition_penalty"})
"""Names of reward components that are no function's."""

Rate = Annotated[float, Meta(gt=0, le=1)]
Several = Annotated[int, Meta(ge=2)]
Layers = AtLeastOne | Annotated[float, Meta(gt=0, lt=1)]
"""Number of layers, or below 1 a share of all."""
Limits = Annotated[list[AtLeastOne], Meta(min_length=2, max_length=2)]


def unused_keys(advantage: str, kl_in_loss: bool) -> dict[str, str]:
    """Return the keys of PPO that these two leave without effect, each with the setting that does so.

    Args:
        advantage: the key of that name.
        kl_in_loss: likewise.
    """
    why = f"advantage: {advantage}"
    if advantage == "gae":
        return dict.fromkeys((*_OF_GROUPS, "scale_rewards"), why)
    unused: dict[str, str] = {key: why for key in _OF_CRITIC}
    if advantage != "grpo":
        unused["scale_rewards"] = why
    if kl_in_loss:
        unused["kl_estimator"] = "kl_in_loss: true"
    return unused


class RewardFunc(Struct, frozen=True, kw_only=True):
    """One of a recipe's reward functions."""

    reference: str
    """``package.module:function``."""
    directory: str | None
    """Where its module lies; None: among the installed packages, or not looked up yet."""
    weight: float
    name: str
    """Its component's: the function's, with its module where that alone would be another component's as well."""


class PPORecipe(TrainRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PPO against a reward model or function; policy and reference share one frozen base."""

    stage: ClassVar[Stage] = Stage.PPO

    dataset_train_split: Annotated[str, about(SPLIT_HELP, min_length=1)] = Split.RL.value
    reward_model_path: Annotated[
        str | None,
        about(
            "Reward model: finished reward run, adapter directory, or sequence-classification model; empty: "
            "`reward_funcs` alone."
        ),
    ] = None
    reward_model_label: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        about(
            "Which of a classification model's scores is the reward, from 0; empty: the only one, or of two the second "
            "minus the first."
        ),
    ] = None
    reward_model_weight: Annotated[float, about("Weight of the reward model in the score.")] = 1.0
    reward_funcs: Annotated[
        list[str],
        about(
            "Reward functions, `package.module:function` each: called with TRL's `prompts` and `completions` or with "
            "`questions` and `responses`, and with columns by name; return one number per response, or None. Imported "
            "from the working directory, PYTHONPATH or the installed packages; ready ones are in "
            "`stackllama_engine.rewards`."
        ),
    ] = []  # noqa: RUF012 - msgspec copies it
    reward_func_paths: Annotated[
        list[str | None],
        about(
            "Directory of the module of each of `reward_funcs`, null: of an installed one; empty: where they are found "
            "at launch."
        ),
    ] = []  # noqa: RUF012 - msgspec copies it
    reward_weights: Annotated[list[float], about("Weight of each of `reward_funcs` in the score; empty: 1 each.")] = []  # noqa: RUF012 - msgspec copies it
    reward_kwargs: Annotated[
        dict[str, Any],
        about('Keyword arguments for the reward functions, to each those that it names, e.g. `{pattern: "####"}`.'),
    ] = {}  # noqa: RUF012 - msgspec copies it
    reward_timeout: Annotated[
        Positive,
        about("Seconds that one call of a reward function may take; a longer one is made again, as a failed one."),
    ] = 300.0
    reward_columns: Annotated[
        list[str] | None,
        about(
            "Columns of the data set that reward functions get by name, and `samples.jsonl` records; empty: all with "
            "text, numbers or flags; []: none."
        ),
    ] = None
    length_penalty: Annotated[
        NotNegative, about("Subtracted from the score per response token beyond `length_penalty_start`.")
    ] = 0.0
    length_penalty_start: Annotated[
        int, about("Response length, in tokens, from which `length_penalty` applies.", ge=0)
    ] = 0
    repetition_penalty: Annotated[
        NotNegative,
        about("Weight of the share of repeated n-grams (1 − distinct-n, arXiv:1510.03055), subtracted from the score."),
    ] = 0.0
    repetition_n_grams: Annotated[int, about("n of the n-grams of `repetition_penalty`, in tokens.", ge=1)] = 3
    lora_dropout: Annotated[
        float, about("Must be 0: PPO compares log-probabilities before and after an update.", ge=0, lt=1)
    ] = 0.0
    policy_adapter_path: Annotated[
        str | None,
        about(
            "Adapter to continue training; a frozen copy of it is the reference. Empty: a new adapter, and the "
            "base as the reference."
        ),
    ] = None
    max_train_samples: Annotated[
        AtLeastOne | None, about("Maximum number of training prompts, taken from the start; empty: all.")
    ] = 50_000
    max_eval_samples: Annotated[
        AtLeastOne | None,
        about(
            "Maximum number of held-out prompts evaluated before and after training, and every `eval_steps`; "
            "empty: all."
        ),
    ] = 64
    optim: Annotated[Optim, about(OPTIM_HELP)] = "adamw_torch"
    learning_rate: Annotated[float, about(LEARNING_RATE_HELP, gt=0, le=1)] = 3e-5
    value_learning_rate: Annotated[
        Rate | None, about("Peak learning rate of the value head and its adapter; empty: `learning_rate`.")
    ] = None
    lr_scheduler_type: Annotated[
        Scheduler, about(f"Learning-rate schedule over PPO steps; `linear` anneals to 0 ({_N_DETAILS}).")
    ] = "constant"

    # batch: per_device_train_batch_size × gradient_accumulation_steps × num_mini_batches = responses per device
    per_device_train_batch_size: Annotated[
        BatchSize, about(f"Micro-batch size per device for PPO updates, in responses. {AUTO_HELP}")
    ] = AUTO_BATCH
    gradient_accumulation_steps: Annotated[int, about(ACCUMULATION_HELP, ge=1)] = 8
    num_mini_batches: Annotated[
        int,
        about(
            "Number of mini-batches (optimizer steps) per PPO epoch; `per_device_train_batch_size` × "
            "`gradient_accumulation_steps` × this is the number of responses per device and PPO step.",
            ge=1,
        ),
    ] = 2
    num_ppo_epochs: Annotated[int, about("Number of PPO epochs per rollout (arXiv:1707.06347, algorithm 1).", ge=1)] = 4
    local_rollout_forward_batch_size: Annotated[
        int,
        about(
            "Batch size per device, in responses, for sampling and for the forward passes of the reference and "
            "the reward model.",
            ge=1,
        ),
    ] = 16
    max_tokens_per_micro_batch: Annotated[
        AtLeastOne | None,
        about(
            "Maximum number of tokens per micro-batch, padding included, in PPO's update and in scoring: rows of like "
            "length are cut by tokens instead of by `per_device_train_batch_size` and "
            "`local_rollout_forward_batch_size` (which sampling keeps); empty: by rows. The effective batch stays."
        ),
    ] = None
    max_steps: Annotated[
        int, about("Number of PPO steps (rollout and update); -1: given by `num_train_epochs`.", ge=-1)
    ] = -1
    num_train_epochs: Annotated[float, about("Number of passes over the prompts if `max_steps` is -1.", gt=0)] = 3.0
    total_episodes: Annotated[
        AtLeastOne | None,
        about("Total number of responses over all processes; overrides `max_steps` and `num_train_epochs`."),
    ] = None

    # sampling
    max_prompt_length: Annotated[int, about("Drop prompts that have this many tokens or more.", ge=1)] = 512
    response_length: Annotated[
        int, about("Maximum number of tokens per response (https://huggingface.co/docs/trl/ppo_trainer).", ge=1)
    ] = 128
    random_length_limits: Annotated[
        Limits | None,
        about(
            "[low, high]: draw the maximum length of each response at random from low to high − 1, in place of "
            f"`response_length`; published for a base that never ends an answer ({_STACKLLAMA})."
        ),
    ] = None
    temperature: Annotated[
        float,
        about(f"Sampling temperature; also divides the logits of every log-probability ({_N_DETAILS}).", gt=0),
    ] = 1.0
    use_vllm: Annotated[
        bool,
        about(
            "Sample with vLLM on the training GPU. vLLM itself has never been run here, only a stand-in. Needs the "
            f"extra `[vllm]` ({_TRL_VLLM})."
        ),
    ] = False
    vllm_gpu_memory_utilization: Annotated[
        float,
        about(
            f"Share of the GPU's memory that vLLM uses while it samples, including its own weights ({_TRL_VLLM}).",
            gt=0,
            lt=1,
        ),
    ] = 0.3
    missing_eos_penalty: Annotated[
        NotNegative | Literal["auto"] | None,
        about(
            "Subtracted from the score of a response without an end-of-sequence token (arXiv:2403.17031, the "
            f"EOS trick); `auto`: {_DEFAULT_EOS_PENALTY:g} with a reward model, which was not trained on "
            "unfinished texts, else 0."
        ),
    ] = "auto"
    missing_eos_reward: Annotated[
        float | None,
        about(
            "Score of a response without an end-of-sequence token, after baseline, normalisation and clipping, "
            "in place of `missing_eos_penalty` (arXiv:2403.17031: −1)."
        ),
    ] = None

    # reward and KL
    normalize_reward: Annotated[
        bool,
        about("Normalise scores by the running mean and standard deviation of all scores so far (arXiv:2307.04964)."),
    ] = False
    cliprange_reward: Annotated[
        Positive | None,
        about("Clip scores to ± this, after `normalize_reward`; empty: no clipping (arXiv:2307.04964, section 5.3.1)."),
    ] = None
    reward_baseline: Annotated[
        float, about(f"Baseline subtracted from every score, after normalisation and clipping ({_STACKLLAMA}).")
    ] = 0.0
    kl_coef: Annotated[
        float, about("KL coefficient; with `adap_kl_ctrl` its initial value (arXiv:1909.08593, section 2.2).", ge=0)
    ] = 0.2
    kl_estimator: Annotated[
        KlEstimator,
        about(
            "Estimator of the per-token KL penalty (http://joschu.net/blog/kl-approx.html); only the gradient "
            "of k1 is unbiased."
        ),
    ] = "k1"
    adap_kl_ctrl: Annotated[
        bool, about("Adapt the KL coefficient so that the KL stays near `target` (arXiv:1909.08593, section 2.2).")
    ] = True
    target: Annotated[
        float,
        about("Target KL per response of the adaptive KL controller, in nats (arXiv:1909.08593, section 2.2).", gt=0),
    ] = 6.0
    horizon: Annotated[
        int, about("Horizon of the adaptive KL controller, in responses (arXiv:1909.08593, section 2.2).", ge=1)
    ] = 10_000

    # PPO
    advantage: Annotated[
        AdvantageEstimator,
        about(
            "Estimator of advantages. `gae`: from a critic's values, token by token (arXiv:1506.02438). `rloo`: a "
            "response's reward minus the mean of the others to the same prompt (arXiv:2402.14740). `grpo`: minus the "
            "mean of its group (arXiv:2402.03300). The latter two need no critic."
        ),
    ] = "gae"
    num_generations: Annotated[
        int,
        about(
            "Number of responses per prompt with `advantage: rloo` or `grpo`; divides the number of responses per "
            f"device and step ({_TRL_GRPO}).",
            ge=2,
        ),
    ] = 4
    scale_rewards: Annotated[
        bool,
        about(
            "With `advantage: grpo`, divide advantages by the standard deviation of their group plus 1e-4, as "
            "published (arXiv:2402.03300); it favours prompts that are nearly solved or nearly hopeless "
            "(arXiv:2503.20783)."
        ),
    ] = False
    loss_type: Annotated[
        GroupLoss,
        about(
            "How token losses become one with `advantage: rloo` or `grpo`. `bnpo`: mean over the mini-batch's tokens, "
            "on all ranks. `grpo`: mean over a response's tokens, then over responses. `dr_grpo`: sum over tokens ÷ "
            f"(responses × maximum length), arXiv:2503.20783 ({_TRL_GRPO})."
        ),
    ] = "bnpo"
    kl_in_loss: Annotated[
        bool,
        about(
            "With `advantage: rloo` or `grpo`, put the KL penalty into the loss, per token, by the estimator k3 "
            "(arXiv:2402.03300, eq. 4); false: it lowers a response's reward."
        ),
    ] = False
    mask_truncated_completions: Annotated[
        bool,
        about(
            "With `advantage: rloo` or `grpo`, leave responses without an end-of-sequence token out of the loss "
            "(arXiv:2503.14476, section 3.4); their group's baseline still counts them."
        ),
    ] = False
    skip_zero_std_groups: Annotated[
        bool,
        about(
            "With `advantage: rloo` or `grpo`, leave groups whose responses all have the same score out of the loss: "
            "they teach nothing, and in `bnpo` their tokens weaken the others' (arXiv:2503.14476, section 3.2)."
        ),
    ] = False
    gamma: Annotated[float, about("Discount factor of GAE (arXiv:1506.02438).", ge=0, le=1)] = 1.0
    lam: Annotated[float, about("GAE lambda (arXiv:1506.02438).", ge=0, le=1)] = 0.95
    whiten_rewards: Annotated[
        bool, about(f"Whiten per-token rewards over all ranks before GAE, keeping their mean ({_N_DETAILS}).")
    ] = False
    whiten_advantages: Annotated[bool, about(f"Whiten advantages over all tokens of all ranks ({_N_DETAILS}).")] = True
    cliprange: Annotated[float, about("Clip range of the policy ratio (arXiv:1707.06347).", gt=0)] = 0.2
    epsilon_high: Annotated[
        Positive | None,
        about(
            "Clip range of the policy ratio above 1; empty: `cliprange`. A wider one, such as 0.28, lets unlikely "
            "tokens become likelier (arXiv:2503.14476, section 3.1)."
        ),
    ] = None
    cliprange_value: Annotated[
        float, about(f"Clip range of the values around those of the rollout ({_N_DETAILS}).", gt=0)
    ] = 0.2
    vf_coef: Annotated[float, about("Value loss coefficient (arXiv:1707.06347, eq. 9).", ge=0)] = 0.1
    ent_coef: Annotated[
        float, about("Entropy bonus coefficient; 0: no bonus, which is faster (arXiv:1707.06347, eq. 9).", ge=0)
    ] = 0.0
    early_stopping: Annotated[
        bool,
        about(
            "Stop the PPO epochs of a rollout when the policy KL exceeds 1.5 × `target_kl` "
            "(https://spinningup.openai.com/en/latest/algorithms/ppo.html)."
        ),
    ] = True
    target_kl: Annotated[
        float,
        about(
            "Target policy KL per rollout, for `early_stopping` "
            "(https://spinningup.openai.com/en/latest/algorithms/ppo.html).",
            gt=0,
        ),
    ] = 0.1
    ratio_threshold: Annotated[
        float, about(f"Skip a mini-batch whose mean ratio exceeds this, to avoid loss spikes ({_STACKLLAMA}).", gt=1)
    ] = 10.0
    value_adapter: Annotated[
        bool,
        about(
            "Give the critic its own adapter on the same base, which costs one more forward pass; false: the "
            "value head reads the policy's hidden states. The value loss never reaches the policy."
        ),
    ] = True
    value_adapter_layers: Annotated[
        Layers | None,
        about(
            "Number of layers, counted from the last, that the critic's own adapter is in; below 1: a share of all, "
            "rounded up. The critic's passes begin with the states below them, kept from scoring. Empty: all layers."
        ),
    ] = None
    value_head_init: Annotated[
        Literal["auto", "zero", "reward"],
        about(
            "Initialise the critic at zero, or from the reward model's adapter and head (arXiv:2403.17031); "
            "`auto`: from the reward model if that was trained on this base and the critic has its own adapter."
        ),
    ] = "auto"

    # reporting and checkpoints
    save_steps: Annotated[
        Steps,
        about(
            "Save a checkpoint every N PPO steps; below 1: a share of all steps; 0: only by time "
            "(`save_minutes`) and when stopped."
        ),
    ] = 50
    eval_steps: Annotated[
        Steps,
        about(
            "Evaluate on the held-out prompts every N PPO steps; below 1: a share of all steps; 0: only before "
            "and after training."
        ),
    ] = 0
    eval_temperatures: Annotated[
        list[NotNegative],
        about(
            "After training, also compare policy and base at these temperatures; 0: greedy. A policy that is "
            "only more certain is no better than its base at a lower temperature."
        ),
    ] = []  # noqa: RUF012 - msgspec copies it
    eval_best_of: Annotated[
        list[Several],
        about(
            "After training, also compare the policy with the best of N responses of the base, by score "
            "(arXiv:2112.09332)."
        ),
    ] = []  # noqa: RUF012 - msgspec copies it
    pause_on: Annotated[
        list[Rule],
        about("Health rules (docs/health.md) that save and stop the run when they find something, e.g. `[kl_high]`."),
    ] = []  # noqa: RUF012 - msgspec copies it
    num_sample_generations: Annotated[int, about("Number of responses recorded per PPO step and evaluation.", ge=0)] = 4

    def __post_init__(self) -> None:
        """Check the keys against each other; see :class:`TrainRecipe`."""
        super().__post_init__()
        if not self.use_peft:
            raise ValueError("PPO needs `use_peft: true`: policy and reference share one frozen base.")
        if self.lora_dropout:
            raise ValueError(
                f"`lora_dropout: {self.lora_dropout:g}`: PPO runs without dropout, so that the ratio of an unchanged "
                "policy is 1; set `lora_dropout: 0`."
            )
        if not (self.reward_model_path or self.reward_funcs):
            raise ValueError("the ppo recipe needs `reward_model_path` or `reward_funcs`; give one of them.")
        self._check_functions()
        self._check_critic()
        if self.local_batch_size % self.group_size:
            raise ValueError(
                f"`num_generations: {self.num_generations}` does not divide the {self.local_batch_size} responses per "
                "device and step (`per_device_train_batch_size` × `gradient_accumulation_steps` × "
                "`num_mini_batches`); change one of them."
            )
        if self.fp16:
            raise ValueError("`fp16: true`: PPO has no loss scaling; use `bf16: true`.")
        if self.missing_eos_penalty not in (None, "auto") and self.missing_eos_reward is not None:
            raise ValueError(
                "`missing_eos_penalty` and `missing_eos_reward` are both set: one lowers the score of a response "
                "without an end-of-sequence token, the other replaces it. Leave one of them empty."
            )
        low, high = self.length_limits
        if low >= high:
            raise ValueError(
                f"`random_length_limits: [{low}, {high}]`: the first must be below the second; the maximum length "
                "is drawn from [low, high)."
            )
        check_one_limit(self.per_device_train_batch_size, self.max_tokens_per_micro_batch)
        if self.max_tokens_per_micro_batch is not None and self.max_tokens_per_micro_batch < self.longest_sequence:
            raise ValueError(
                f"`max_tokens_per_micro_batch: {self.max_tokens_per_micro_batch}` holds no response of full length: "
                f"`max_prompt_length: {self.max_prompt_length}` and {self.length_key} make up to "
                f"{self.longest_sequence} tokens; raise it to at least that."
            )
        if self.use_vllm:
            self._check_vllm()

    def _check_critic(self) -> None:
        """Check the critic's keys.

        Raises:
            ValueError: one of them needs another.
        """
        if not self.has_critic:
            return
        if self.value_head_init == "reward" and not self.reward_model_path:
            raise ValueError("`value_head_init: reward` needs `reward_model_path`; use `value_head_init: auto`.")
        if self.value_adapter_layers is not None and not self.value_adapter:
            raise ValueError(
                f"`value_adapter_layers: {self.value_adapter_layers}` needs `value_adapter: true`; leave it empty."
            )

    def _check_functions(self) -> None:
        """Check the reward functions' names, and that there is one of everything for each.

        Raises:
            ValueError: a name that is none, one twice, or lists of different lengths.
        """
        for reference in self.reward_funcs:
            if not FUNCTION.fullmatch(reference):
                raise ValueError(
                    f"`reward_funcs: {reference}`: expected `package.module:function`, for example "
                    "`rewards:politeness` for `politeness` in rewards.py."
                )
        if len(set(self.reward_funcs)) < len(self.reward_funcs):
            raise ValueError("`reward_funcs` names a function twice; name it once, with another weight.")
        if taken := sorted(REWARD_ARGUMENTS & self.reward_kwargs.keys()):
            raise ValueError(f"`reward_kwargs` has `{taken[0]}`, which is what is scored; choose another name.")
        if not self.reward_funcs:
            return
        for key in ("reward_weights", "reward_func_paths"):
            given: list[Any] = getattr(self, key)
            if given and len(given) != len(self.reward_funcs):
                raise ValueError(
                    f"`{key}` has {len(given)} entries for {len(self.reward_funcs)} `reward_funcs`; give one for each, "
                    "or leave it empty."
                )

    def _check_vllm(self) -> None:
        """Refuse policies that vLLM cannot sample from.

        Raises:
            ValueError: a key that vLLM does not support.
        """
        if self.use_cpu:
            raise ValueError("`use_vllm: true` needs a GPU, but `use_cpu: true` is set; set one of them to false.")
        if self.quantised or self.model_name_or_path.endswith(".gguf"):
            base = "a .gguf base" if not self.quantised else f"a base in {8 if self.load_in_8bit else 4} bits"
            raise ValueError(
                f"`use_vllm: true` cannot sample from {base}, which vLLM loads differently; use safetensors with "
                "`base_precision: bf16`, or `use_vllm: false`."
            )
        if self.dtype == "float32":
            raise ValueError(
                "`use_vllm: true` needs 16-bit weights, because vLLM applies LoRA to no others; use `dtype: bfloat16`, "
                "or `use_vllm: false`."
            )
        if self.lora_r > VLLM_LORA_RANKS[-1]:
            raise ValueError(
                f"`lora_r: {self.lora_r}` is too large for `use_vllm: true`, which supports ranks up to "
                f"{VLLM_LORA_RANKS[-1]}; lower it, or use `use_vllm: false`."
            )
        if self.temperature < VLLM_LEAST_TEMPERATURE:
            raise ValueError(
                f"`temperature: {self.temperature:g}` is too low for `use_vllm: true`, which samples at "
                f"{VLLM_LEAST_TEMPERATURE} or more; raise it, or use `use_vllm: false`."
            )

    @property
    def functions(self) -> "list[RewardFunc]":
        """The reward functions with their directories, weights and names."""
        if not (count := len(self.reward_funcs)):
            return []
        paths = self.reward_func_paths or [None] * count
        weights = self.reward_weights or [1.0] * count
        last = [reference.rpartition(":")[2] for reference in self.reward_funcs]
        return [
            RewardFunc(
                reference=reference,
                directory=path,
                weight=weight,
                name=reference.replace(":", ".") if name in OWN_COMPONENTS or last.count(name) > 1 else name,
            )
            for reference, path, weight, name in zip(self.reward_funcs, paths, weights, last, strict=True)
        ]

    @property
    def length_limits(self) -> tuple[int, int]:
        """Range ``[low, high)`` from which a response's maximum length is drawn; high = low + 1 where it is fixed."""
        if self.random_length_limits is not None:
            low, high = self.random_length_limits
            return low, high
        return self.response_length, self.response_length + 1

    @property
    def longest_response(self) -> int:
        """Tokens of the longest possible response."""
        return self.length_limits[1] - 1

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt, which is shorter than its limit, and response together."""
        return max(1, self.max_prompt_length - 1) + self.longest_response

    @property
    def length_key(self) -> str:
        """Key that limits the length of a response, with its value, for messages."""
        if self.random_length_limits is not None:
            return f"`random_length_limits={self.random_length_limits}`"
        return f"`response_length={self.response_length}`"

    @property
    def eos_penalty(self) -> float:
        """Penalty for a response without an end-of-sequence token: `missing_eos_penalty` with `auto` resolved."""
        if self.missing_eos_penalty != "auto":
            return self.missing_eos_penalty or 0.0
        return _DEFAULT_EOS_PENALTY if self.reward_model_path and self.missing_eos_reward is None else 0.0

    @property
    def has_critic(self) -> bool:
        """Whether advantages come from a critic's values."""
        return self.advantage == "gae"

    @property
    def has_separate_critic(self) -> bool:
        """Whether there is a critic, with an adapter of its own."""
        return self.has_critic and self.value_adapter

    @property
    def group_size(self) -> int:
        """Responses per prompt in training; 1 with a critic."""
        return 1 if self.has_critic else self.num_generations

    @property
    def penalty_estimator(self) -> KlEstimator:
        """Estimator of the KL that is penalised: `kl_estimator`, but k3 in the loss."""
        return "k3" if self.kl_in_loss and not self.has_critic else self.kl_estimator

    @property
    def unused(self) -> dict[str, str]:
        """Keys that others leave without effect; see :func:`unused_keys`."""
        return unused_keys(self.advantage, self.kl_in_loss)

    def critic_layers(self, depth: int) -> int:
        """Return how many of a base's ``depth`` layers the critic's own adapter is in; more than it has if so asked."""
        return depth if self.value_adapter_layers is None else steps_of(self.value_adapter_layers, depth)

    @property
    def micro_batch_size(self) -> int:
        """`per_device_train_batch_size` as a number."""
        return micro_batch_of(self.per_device_train_batch_size)

    @property
    def local_batch_size(self) -> int:
        """Responses per device and PPO step."""
        return self.micro_batch_size * self.gradient_accumulation_steps * self.num_mini_batches
