"""In which width each kind of number is held, from a recipe's keys.

Sources: ``train/models.py`` here; PEFT's ``prepare_model_for_kbit_training`` (embeddings, head and norms become
float32, and the activations of the layers with them); bitsandbytes' autograd functions; torch's autocast.
"""

from typing import Literal

from msgspec import Struct

from ..contract.recipe import ModelRecipe, TrainRecipe
from .architecture import DTYPE_BYTES, Architecture

Quant = Literal["int8", "4bit"]


class Precision(Struct, frozen=True, kw_only=True):
    """Bytes of one element of each kind."""

    native: int
    """Unquantised weights as they are loaded."""
    quant: Quant | None = None
    double_quant: bool = False
    kbit: bool = False
    """Prepared for k-bit training: what is not quantised is float32."""
    amp: bool = False
    """A 16-bit autocast around the forward pass."""

    @property
    def other(self) -> int:
        """Embedding, head and norms."""
        return 4 if self.kbit else self.native

    @property
    def residual(self) -> int:
        """The residual stream, which has the embedding's dtype."""
        return self.other

    @property
    def compute(self) -> int:
        """What a linear gives; bitsandbytes gives the dtype of its input, autocast or not."""
        if self.quant:
            return self.residual
        return 2 if self.amp else self.native

    @property
    def attention(self) -> int:
        """Queries, keys, values as the attention kernel saves them."""
        return 2 if self.amp else self.compute

    @property
    def head(self) -> int:
        """What the language-model head gives."""
        return 2 if self.amp else self.other


def precision_of(recipe: TrainRecipe, arch: Architecture) -> Precision:
    """The precision a training stage runs in."""
    return Precision(
        native=native_bytes(recipe, arch),
        quant="int8" if recipe.load_in_8bit else "4bit" if recipe.load_in_4bit else None,
        double_quant=recipe.use_bnb_nested_quant,
        kbit=recipe.quantised and recipe.use_peft,
        amp=recipe.bf16 or recipe.fp16,
    )


def native_bytes(recipe: ModelRecipe, arch: Architecture) -> int:
    """Bytes of an unquantised weight: the recipe's dtype, or the checkpoint's own."""
    return arch.checkpoint_bytes if recipe.dtype == "auto" else DTYPE_BYTES[recipe.dtype]
