"""The least time that a card can take, from operations and bytes counted by hand, beside which measured times stand.

Counted is what no arrangement avoids. A pass over tokens multiplies with every weight of the trunk once, and with the
output head where a token is scored; attention is causal, so half of its square. The base is frozen: its backward pass
has the gradient of the inputs alone, as many operations as forward, and attention's five products where forward has two
(arXiv:2205.14135, algorithm 4). Not counted: LoRA's own products (1.3 % of the trunk at rank 16), norms, activations,
softmax, the optimizer, and forward passes made again to save memory. Bytes are the weights once per pass and, while
decoding, keys and values of every earlier token, in bfloat16.

Shapes: ``B`` sequences, ``T`` tokens each, ``P`` of a prompt and ``R`` of a response, ``H`` hidden width.
"""

from dataclasses import dataclass, replace

_BF16 = 2
WEIGHT_BYTES = {"float32": 4.0, "bf16": 2.0, "int8": 1.0, "nf4": 0.5}
"""Bytes per weight of the trunk; scales of a quantised base are not counted."""
_ATTENTION_BACKWARD = 2.5
"""Products of attention's backward pass relative to its forward pass: five to two."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaMA."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def trunk(self) -> int:
        """Weights in the matrices of all layers."""
        kv_width = self.hidden * self.kv_heads // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * kv_width  # q and o, k and v
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.vocabulary * self.hidden

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values per token, in bfloat16."""
        return self.layers * 2 * (self.hidden * self.kv_heads // self.heads) * _BF16

    def weight_bytes(self, precision: str) -> float:
        """Bytes that a pass reads: the trunk in its precision, the head as it is without one."""
        return self.trunk * WEIGHT_BYTES[precision] + self.head * max(_BF16, WEIGHT_BYTES[precision])


@dataclass(frozen=True)
class Rates:
    """What a card sustains: multiply-adds × 2 and bytes, per second."""

    flop: float
    bytes: float


@dataclass(frozen=True)
class Cost:
    """Multiply-adds × 2 and bytes of some work."""

    flop: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flop + other.flop, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.flop * times, self.bytes * times)

    def seconds(self, rates: Rates) -> float:
        """Return the least time, were computing and reading perfectly side by side."""
        return max(self.flop / rates.flop, self.bytes / rates.bytes)


@dataclass(frozen=True)
class PPOStep:
    """Sizes of a PPO step."""

    responses: int
    prompt: int
    response: int
    epochs: int
    own_critic: bool
    """Whether the critic has an adapter of its own: a pass more in scoring and in the update."""
    critic_layers: int | None = None
    """Layers that such a pass runs through (``value_adapter_layers``); None: all."""


def forward(shape: Shape, rows: int, tokens: int, scored: int, precision: str = "bf16") -> Cost:
    """Count a forward pass over ``rows`` sequences of ``tokens``, of which ``scored`` tokens of all go to the head."""
    products = 2.0 * shape.trunk * rows * tokens + 2.0 * shape.head * scored
    return Cost(products + _attention(shape, rows, tokens), shape.weight_bytes(precision))


def backward(shape: Shape, rows: int, tokens: int, scored: int, precision: str = "bf16") -> Cost:
    """Count the backward pass through a frozen base to the adapters; arguments as :func:`forward`."""
    products = 2.0 * shape.trunk * rows * tokens + 2.0 * shape.head * scored
    attention = _ATTENTION_BACKWARD * _attention(shape, rows, tokens)
    return Cost(products + attention, shape.weight_bytes(precision))


def decode(shape: Shape, rows: int, context: int, tokens: int, precision: str = "bf16") -> Cost:
    """Count ``tokens`` decoding steps of ``rows`` sequences, the first of which sees ``context`` tokens with itself."""
    seen = sum(range(context, context + tokens)) * rows  # keys over all steps and rows
    products = 2.0 * (shape.trunk + shape.head) * rows * tokens
    attention = 4.0 * shape.layers * shape.hidden * seen
    return Cost(products + attention, shape.weight_bytes(precision) * tokens + shape.kv_bytes * seen)


def ppo_phases(shape: Shape, step: PPOStep, rates: Rates, precision: str = "bf16") -> dict[str, float]:
    """Return the least seconds of sampling, scoring and update of one PPO step.

    Sampling: the prompts at once, then a token at a time; the last token of a response is not read. Scoring:
    log-probabilities of policy and reference, the reward model's score, and the values of a critic of its own. Update:
    per epoch one pass each way, and one more each way through a critic of its own.
    """
    rows, tokens = step.responses, step.prompt + step.response
    scored = rows * step.response
    prefill = forward(shape, rows, step.prompt, rows, precision)
    decoding = decode(shape, rows, step.prompt + 1, step.response - 1, precision)
    scored_pass = forward(shape, rows, tokens, scored, precision)
    plain = forward(shape, rows, tokens, 0, precision)
    both_ways = scored_pass + backward(shape, rows, tokens, scored, precision)
    upper = shape if step.critic_layers is None else replace(shape, layers=step.critic_layers)
    values = forward(upper, rows, tokens, 0, precision)
    critic = values + backward(upper, rows, tokens, 0, precision)
    scoring = scored_pass * 2 + (plain + values if step.own_critic else plain)
    update = (both_ways + critic if step.own_critic else both_ways) * step.epochs
    return {
        "rollout": prefill.seconds(rates) + decoding.seconds(rates),
        "score": scoring.seconds(rates),
        "update": update.seconds(rates),
    }


def sft_step(shape: Shape, documents: int, tokens: int, precision: str = "bf16") -> Cost:
    """Count an SFT step over ``documents`` of ``tokens`` each, every token of which bears loss."""
    scored = documents * tokens
    return forward(shape, documents, tokens, scored, precision) + backward(shape, documents, tokens, scored, precision)


def _attention(shape: Shape, rows: int, tokens: int) -> float:
    """Count attention's two products over the lower half of a square, forward, in all layers."""
    return 2.0 * shape.layers * shape.hidden * rows * tokens * tokens
