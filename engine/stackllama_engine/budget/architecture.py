"""Sizes of a model: its matrices, layers, vocabulary and precision."""

from msgspec import Struct

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


class Linear(Struct, frozen=True):
    """A matrix that every layer has; bitsandbytes can quantise it, LoRA can adapt it."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    count: int = 1
    """Number of experts, each with its own."""
    source: str = ""
    """Name of its input tensor, which matrices may share: ``attn``, ``out``, ``mlp``, ``down``."""


class Architecture(Struct, frozen=True, kw_only=True):
    """Sizes of a model. Counts are in elements, ``bytes_on_disk`` in bytes."""

    name: str
    model_type: str
    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    """Embedding and language-model head are one matrix."""
    experts: int | None = None
    experts_used: int = 1
    """Number of experts that process one token."""
    dtypes: tuple[str, ...] = ()
    """Dtypes of the checkpoint, as ``config.json`` or the files name them; the most frequent first."""
    bytes_on_disk: int = 0
    rough: str | None = None
    """Why the numbers are approximate: what was missing. None: nothing was."""
    unknown: str | None = None
    """Why `parameters` is only a lower bound: what is not counted. None: everything is."""
    packed: float | None = None
    """Minimum bytes per element of a checkpoint that is already quantised. None: it is not."""
    linears: tuple[Linear, ...] = ()
    norms: int = 0
    """Elements of the norms of one layer."""
    extra: int = 0
    """Elements outside layers, embedding and head: learned positions, final norm, biases of the head."""
    family: str = "llama"
    """Kind of layer: ``llama``, ``gemma``, ``phi``, ``neox``, ``gpt2``."""
    qk_norm: bool = False
    gated: bool = True
    activation: str = "silu"
    logit_steps: int = 0
    """Operations on the logits behind the head's product: 1 scales them, 2 cap them."""
    window: int = 0
    """Tokens of a sliding window of attention that some layers have; 0: none has one."""
    attention_dropout: bool = False
    """Whether attention drops weights in training."""
    default_targets: tuple[str, ...] | None = None
    """LoRA targets if the recipe names none; None: PEFT has no default for this model."""

    @property
    def q(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of the keys, or the values, of all heads."""
        return self.kv_heads * self.head_dim

    @property
    def embedding(self) -> int:
        """Elements of the embedding."""
        return self.vocab * self.hidden

    @property
    def layer_linear(self) -> int:
        """Elements of one layer's matrices."""
        return sum(linear.inputs * linear.outputs * linear.count for linear in self.linears)

    @property
    def adaptable(self) -> tuple[Linear, ...]:
        """Matrices that are separate modules, which LoRA can adapt and bitsandbytes quantise.

        The experts of a mixture are one three-dimensional parameter in transformers 5, which both leave alone.
        """
        return tuple(linear for linear in self.linears if linear.count == 1)

    @property
    def layer_rows(self) -> int:
        """Output rows of one layer's matrices that are quantised: int8 has a scale for each."""
        return sum(linear.outputs for linear in self.adaptable)

    @property
    def expert(self) -> int:
        """Elements of the experts of all layers."""
        return self.layers * sum(one.inputs * one.outputs * one.count for one in self.linears if one.count > 1)

    @property
    def linear(self) -> int:
        """Elements of all matrices inside layers."""
        return self.layers * self.layer_linear

    @property
    def other(self) -> int:
        """Elements of everything that is never quantised: embedding, head, norms, biases. Tied ones count once."""
        return max(0, self.parameters - self.linear)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes per element with ``dtype: auto``; float32 if the files do not say, as in transformers."""
        widths = [DTYPE_BYTES[name] for name in self.dtypes if name in DTYPE_BYTES]
        return widths[0] if widths else 4
