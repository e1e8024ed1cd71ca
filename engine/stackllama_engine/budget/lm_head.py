"""Memory of the language-model head and the loss over its logits, in bytes.

V vocabulary, T tokens. Sources: transformers' ``ForCausalLMLoss``; TRL 1.16 ``kernels/chunked_logprob.py``;
``train/ppo/shared_base.py`` here.
"""

from typing import Literal

from .architecture import Architecture
from .precision import Precision

Head = Literal["tiled", "plain", "chunked", "score"]
"""``tiled``: TRL's fused head; ``plain``: all logits at once; ``chunked``: projected in eighths, compiled;
``score``: one number per text."""
TILE_TOKENS = 4096
TILE_VOCABULARY = 32768
CHUNKS = 8
CHUNK_TOKENS, CUDA_CHUNK_TOKENS, CUDA_LOGITS = 128, 1024, 1 << 26
"""As in ``train/ppo/head.py``."""


def loss(kind: Head, arch: Architecture, precision: Precision, tokens: int, *, on_gpu: bool, kept: bool = False) -> int:
    """Return the peak of head and loss, at the end of the forward pass or in the loss's backward pass.

    Args:
        kind: kind of head.
        arch: sizes of the model.
        precision: precision of the model.
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
    """Return the gradients of the head's own weights, if trained: during the loss, and in the head's backward pass.

    TRL's fused head sums its tiles in float32 and casts the sum. A chunked head adds each chunk's gradient to the sum
    of those before. A plain head computes it after the loss's peak.
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
    """Return the gradient of the logits at the head's backward pass, with its float32 copy."""
    return (width + (4 if width < 4 else 0)) * vocabulary * tokens if kind == "plain" else 0


def tiled(arch: Architecture, precision: Precision, tokens: int, *, on_gpu: bool) -> int:
    """Return a tile of logits, its slice of the head, hidden states, and their gradient in float32 and own dtype."""
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
    """Return the logits, their float32 copy, and in the backward pass the gradient twice.

    12 bytes per logit in bf16, 14 if the outputs stay alive.
    """
    outputs = width if kept and width < 4 else 0
    return (12 + outputs) * vocabulary * tokens


def chunk_tokens(vocabulary: int, *, on_gpu: bool) -> int:
    """Return the tokens of a chunk of ``train/ppo/head.py``."""
    if not on_gpu:
        return CHUNK_TOKENS
    return max(CHUNK_TOKENS, min(CUDA_CHUNK_TOKENS, CUDA_LOGITS // vocabulary // CHUNK_TOKENS * CHUNK_TOKENS))


def chunk(arch: Architecture, precision: Precision, tokens: int, *, trains: bool, on_gpu: bool) -> int:
    """Return what ``train/ppo/head.py`` holds per chunk of tokens.

    Log-probabilities and probabilities in float32, and the logits of a narrower head. Where the model's own code scales
    or caps the logits, also what autograd keeps: three float32 arrays, and one in the head's type per operation.
    """
    narrow = precision.head if precision.head < 4 else 0
    own = 0
    if arch.logit_steps:
        own = 12 + precision.head * arch.logit_steps if trains else precision.head
    return (8 + narrow + own) * arch.vocab * min(tokens, chunk_tokens(arch.vocab, on_gpu=on_gpu))


def update(arch: Architecture, precision: Precision, tokens: int, *, directions: int, on_gpu: bool) -> int:
    """Return the peak of PPO's log-probabilities with gradients.

    Per token the hidden state in the head's dtype and one float32 vector per direction; beside them a chunk, or the
    gradient.
    """
    hidden = 4 * arch.hidden * tokens
    taken = precision.head * arch.hidden * tokens
    kept = directions * hidden
    backward = hidden + (taken if precision.head < 4 else 0)
    return max(taken + kept + chunk(arch, precision, tokens, trains=True, on_gpu=on_gpu), kept + backward)


def narrowed(arch: Architecture, precision: Precision) -> int:
    """Return the 16-bit copy of a float32 head under autocast, which lives as long as its product."""
    return 2 * arch.embedding if precision.amp and precision.other == 4 else 0


def scoring(arch: Architecture, precision: Precision, tokens: int, *, on_gpu: bool) -> int:
    """Return the peak of PPO's log-probabilities without gradients: states, the head's 16-bit copy, and a chunk."""
    taken = precision.head * arch.hidden * tokens
    return taken + narrowed(arch, precision) + chunk(arch, precision, tokens, trains=False, on_gpu=on_gpu)


def sampling(arch: Architecture, precision: Precision, rows: int) -> int:
    """Return the peak of sampling one token.

    Logits and softmax in float32, its cumulative sum in float64; or before them the head's 16-bit copy and its output.
    """
    return max((4 + 4 + 8 + 8) * arch.vocab * rows, narrowed(arch, precision) + precision.head * arch.vocab * rows)
