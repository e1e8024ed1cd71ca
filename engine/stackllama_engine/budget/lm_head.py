"""The language-model head and the loss over its logits; bytes.

V vocabulary, T tokens. Sources: transformers' ``ForCausalLMLoss``; TRL 1.16 ``kernels/chunked_logprob.py``;
``train/ppo/shared_base.py`` here.
"""

from typing import Literal

from .architecture import Architecture
from .precision import Precision

Head = Literal["tiled", "plain", "chunked", "score"]
"""``tiled``: TRL's fused head; ``plain``: all logits at once; ``chunked``: projected in eighths, compiled;
``score``: one number a text."""
TILE_TOKENS = 4096
TILE_VOCABULARY = 32768
CHUNKS = 8
CHUNK_TOKENS = 128
"""As in ``train/ppo/head.py``."""


def loss(kind: Head, arch: Architecture, precision: Precision, tokens: int, *, on_gpu: bool, kept: bool = False) -> int:
    """The most that head and loss hold at once, at the end of the forward pass or in the loss's backward pass.

    Args:
        kind: which head.
        arch: the model.
        precision: how it runs.
        tokens: T.
        on_gpu: with Triton's kernels; torch's own operations need copies of the tile.
        kept: the model's outputs stay alive through the backward pass.
    """
    match kind:
        case "tiled":
            return tiled(arch, precision, tokens, on_gpu=on_gpu)
        case "plain":
            return plain(arch.vocab, tokens, precision.head, kept=kept)
        case "chunked":
            return precision.head * arch.vocab * (tokens + -(-tokens // CHUNKS))
        case "score":
            return 4 * 2 * tokens


def gradients(kind: Head, elements: int, width: int) -> tuple[int, int]:
    """Gradients of the head's own weights, where they are trained: during the loss, and in the head's backward pass.

    TRL's fused head adds its tiles up in float32 and casts the sum. One that is used chunk by chunk adds each
    chunk's gradient to the sum of those before. A plain one makes it after the loss's largest moment.
    """
    match kind:
        case "tiled":
            return elements * (4 + (width if width < 4 else 0)), 0
        case "chunked":
            return 2 * elements * width, 0
        case "plain":
            return 0, elements * width
        case "score":
            return 0, 0


def logit_gradients(kind: Head, vocabulary: int, tokens: int, width: int) -> int:
    """Gradient of the logits as the head's backward pass finds it, and its float32 form."""
    return (width + (4 if width < 4 else 0)) * vocabulary * tokens if kind == "plain" else 0


def tiled(arch: Architecture, precision: Precision, tokens: int, *, on_gpu: bool) -> int:
    """One tile of logits, its slice of the head; hidden states, and their gradient in float32 and in their dtype."""
    rows = min(tokens, TILE_TOKENS)
    tile = precision.head * rows * TILE_VOCABULARY
    columns = min(arch.vocab, TILE_VOCABULARY)
    folded = 0 if on_gpu else 5 * 4 * rows * columns
    cast = precision.head * columns * arch.hidden if precision.head != precision.other else 0
    stream = precision.residual
    hidden = (4 + stream + (stream if stream < 4 else 0)) * arch.hidden * tokens
    narrow = precision.head * arch.hidden * rows if precision.head != stream else 0
    return tile + folded + cast + hidden + narrow


def plain(vocabulary: int, tokens: int, width: int, *, kept: bool = False) -> int:
    """Logits, their float32 copy, and in the backward pass the gradient twice: 12 bytes a logit in bf16, 14 when
    the outputs stay alive."""
    outputs = width if kept and width < 4 else 0
    return (12 + outputs) * vocabulary * tokens


def chunk(arch: Architecture, precision: Precision, tokens: int) -> int:
    """What ``train/ppo/head.py`` holds of a hundred tokens: logarithms and probabilities in float32, and the logits of
    a narrower head."""
    narrow = precision.head if precision.head < 4 else 0
    return (8 + narrow) * arch.vocab * min(tokens, CHUNK_TOKENS)


def update(arch: Architecture, precision: Precision, tokens: int, *, directions: int) -> int:
    """PPO's log-probabilities with gradients: of each token the hidden state as the head takes it and a float32 vector
    a direction; beside them a chunk, or the gradient."""
    hidden = 4 * arch.hidden * tokens
    taken = precision.head * arch.hidden * tokens
    kept = directions * hidden
    backward = hidden + (taken if precision.head < 4 else 0)
    return max(taken + kept + chunk(arch, precision, tokens), kept + backward)


def narrowed(arch: Architecture, precision: Precision) -> int:
    """The 16-bit copy of a float32 head under autocast, as long as its product is needed."""
    return 2 * arch.embedding if precision.amp and precision.other == 4 else 0


def scoring(arch: Architecture, precision: Precision, tokens: int) -> int:
    """PPO's log-probabilities without gradients: the states as the head takes them, its narrow copy, and a chunk."""
    taken = precision.head * arch.hidden * tokens
    return taken + narrowed(arch, precision) + chunk(arch, precision, tokens)


def sampling(arch: Architecture, precision: Precision, rows: int) -> int:
    """One token's distribution: logits and softmax in float32, its cumulative sum in float64; or before them the
    head's narrow copy and what it gives."""
    return max((4 + 4 + 8 + 8) * arch.vocab * rows, narrowed(arch, precision) + precision.head * arch.vocab * rows)
