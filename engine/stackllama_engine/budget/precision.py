"""Width of each kind of number, from a recipe's keys.

Sources: ``train/models.py`` here; PEFT's ``prepare_model_for_kbit_training`` (embeddings, head and norms become
float32, and the activations of the layers with them); bitsandbytes' autograd functions; torch's autocast.
"""

from typing import Literal

from msgspec import Struct

from ..contract.recipe import ModelRecipe, TrainRecipe
from .architecture import DTYPE_BYTES, Architecture

Quant = Literal["int8", "4bit"]


class Precision(Struct, frozen=True, kw_only=True):
    """Bytes per element of each kind of number."""

    native: int
    """Width of unquantised weights as they are loaded."""
    quant: Quant | None = None
    double_quant: bool = False
    kbit: bool = False
    """Prepared for k-bit training: everything that is not quantised is float32."""
    amp: bool = False
    """16-bit autocast in the forward pass."""

    @property
    def other(self) -> int:
        """Width of embedding, head and norms."""
        return 4 if self.kbit else self.native

    @property
    def residual(self) -> int:
        """Width of the residual stream, which has the embedding's dtype."""
        return self.other

    @property
    def compute(self) -> int:
        """Width of a linear's output; bitsandbytes returns the dtype of its input, with or without autocast."""
        if self.quant:
            return self.residual
        return 2 if self.amp else self.native

    @property
    def attention(self) -> int:
        """Width of queries, keys and values as saved by the attention kernel."""
        return 2 if self.amp else self.compute

    @property
    def head(self) -> int:
        """Width of the language-model head's output."""
        return 2 if self.amp else self.other


def precision_of(recipe: TrainRecipe, arch: Architecture) -> Precision:
    """Return the precision of a training stage."""
    return Precision(
        native=native_bytes(recipe, arch),
        quant="int8" if recipe.load_in_8bit else "4bit" if recipe.load_in_4bit else None,
        double_quant=recipe.use_bnb_nested_quant,
        kbit=recipe.quantised and recipe.use_peft,
        amp=recipe.bf16 or recipe.fp16,
    )


def native_bytes(recipe: ModelRecipe, arch: Architecture) -> int:
    """Return the bytes per unquantised weight: the recipe's dtype, or the checkpoint's own."""
    return arch.checkpoint_bytes if recipe.dtype == "auto" else DTYPE_BYTES[recipe.dtype]
