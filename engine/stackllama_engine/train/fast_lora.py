"""LoRA on a plain linear layer with fewer kernels and less memory traffic than PEFT's own code.

PEFT computes ``y = W x``, ``u = scale · B (A x)`` and ``y + u`` one after the other, and casts ``x`` to the adapter's
float32 before autocast casts it back. Here the scale and the sum are part of the second product, in place
(``y += scale · (A x) Bᵀ``, one ``addmm``), in both directions; and under autocast ``x`` goes in as it is, which is the
same number for number, because float32 holds every 16-bit value.

What this does not cover runs in PEFT's code, call by call: DoRA and other variants, an adapter with a bias, several
active adapters, merged or disabled ones, base layers that are trained, quantised, hooked or no ``nn.Linear``, and
mixed dtypes without autocast.

Shapes: ``N`` tokens, ``I`` inputs, ``O`` outputs, ``r`` rank.
"""

from typing import Any

import torch
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .left_out import left_out


def speed_up_lora(model: nn.Module) -> None:
    """Give the plain LoRA layers of a model the forward pass of :class:`FastLoraLinear`.

    To be called again after an adapter was added, which may have put LoRA on more layers.

    Raises:
        UsageError: ``STACKLLAMA_LEAVE_OUT`` holds a name that does not exist.
    """
    casts, fused = not left_out("casts"), not left_out("lora")
    for module in model.modules():
        if type(module) is lora.Linear and type(module.get_base_layer()) is nn.Linear:
            fast: Any = module
            fast.__class__ = FastLoraLinear
            fast.skips_casts, fast.fuses = casts, fused


_Parts = tuple[Tensor, Tensor | None, Tensor, Tensor, nn.Dropout | None, float]
"""Base weight and bias, A, B, the dropout that changes the adapter's input, and the scale."""


class FastLoraLinear(lora.Linear):
    """PEFT's LoRA layer, whose forward pass leaves out input casts and fuses the adapter's product, scale and sum."""

    skips_casts: bool
    """Whether inputs keep their dtype under autocast; else they are cast to the adapter's, as by PEFT."""
    fuses: bool
    """Whether scale and sum are part of the adapter's second product; else they are PEFT's own operations."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute ``W x + scale · B A x``, ``[..., O]``, from ``x``, ``[..., I]``."""
        parts = None if args or kwargs else self._parts()
        if parts is None:
            return super().forward(x, *args, **kwargs)
        weight, bias, down, up, dropout, scale = parts
        dtype = _dtype(x, weight, down, up)
        if dtype is None:
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)  # [N, I]
        adapter_rows = None  # the same
        if dropout is not None or not self.skips_casts:
            own = self._cast_input_dtype(x, down.dtype)
            own = own if dropout is None else dropout(own)
            adapter_rows = own.reshape(rows.shape).to(dtype)
        bias = None if bias is None else bias.to(dtype)
        operands = rows, adapter_rows, weight.to(dtype), bias, down.to(dtype), up.to(dtype), scale
        y: Any = _LoraLinear.apply(*operands) if torch.is_grad_enabled() else _product(*operands)[0]
        return y.view(*x.shape[:-1], y.shape[-1])

    def _parts(self) -> _Parts | None:
        """Return what the product needs, if :class:`_LoraLinear` computes what PEFT would."""
        if not self.fuses or self._disable_adapters or self.merged_adapters:
            return None
        downs: Any = self.lora_A
        names = [name for name in self.active_adapters if name in downs]
        if len(names) != 1 or names[0] in self.lora_variant or self.lora_bias[names[0]]:
            return None
        name = names[0]
        base: Any = self.base_layer
        down: Any = downs[name]
        up: Any = self.lora_B[name]
        dropout: Any = self.lora_dropout[name]
        weight, bias = base.weight, base.bias
        trains = weight.requires_grad or (bias is not None and bias.requires_grad)
        if trains or _changed(base) or _changed(down) or _changed(up):
            return None
        if type(dropout) not in (nn.Dropout, nn.Identity):
            return None
        return weight, bias, down.weight, up.weight, dropout if _drops(dropout) else None, self.scaling[name]

    def _cast_input_dtype(self, x: Any, dtype: torch.dtype) -> Any:
        """Leave an input in its dtype under autocast, which casts it for the product that reads it.

        Dropout on a CPU would multiply in 16 bits, by a rounded factor; there its input is cast as by PEFT.
        """
        if not self.skips_casts or x is None or not torch.is_autocast_enabled(x.device.type):
            return super()._cast_input_dtype(x, dtype)
        drops = any(_drops(self.lora_dropout[name]) for name in self.active_adapters if name in self.lora_A)
        return super()._cast_input_dtype(x, dtype) if drops and not drops_in_float32(x) else x


def drops_in_float32(x: Tensor) -> bool:
    """Return whether dropout multiplies 16-bit inputs in float32 and rounds once, as CUDA's kernel does."""
    return x.device.type == "cuda"


class _LoraLinear(torch.autograd.Function):
    """``y = W x + b + scale · B A a``, with gradients of all but ``W`` and ``b``; ``a`` is None where it is ``x``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        adapter_x: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        y, inner = _product(x, adapter_x, weight, bias, down, up, scale)
        to_base, to_adapter, _, _, to_down, to_up, _ = ctx.needs_input_grad
        ctx.scale, ctx.shares = scale, adapter_x is None
        ctx.save_for_backward(
            (x if adapter_x is None else adapter_x) if to_down else None,
            inner if to_up else None,
            weight if to_base else None,
            down if to_base or to_adapter else None,
            up,
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        source, inner, weight, down, up = ctx.saved_tensors
        (grad,) = gradients  # [N, O]
        to_x = to_adapter_x = to_down = to_up = None
        if inner is not None:
            to_up = _scaled(ctx.scale, grad.T, inner)  # [O, r]
        if source is not None or down is not None:
            to_inner = _scaled(ctx.scale, grad, up)  # [N, r]
            if source is not None:
                to_down = to_inner.T @ source  # [r, I]
            if weight is not None:
                to_x = grad @ weight  # [N, I]
            if ctx.shares and to_x is not None:
                to_x.addmm_(to_inner, down)
            elif ctx.needs_input_grad[1]:
                to_adapter_x = to_inner @ down
        return to_x, to_adapter_x, None, None, to_down, to_up, None


def _product(
    x: Tensor, adapter_x: Tensor | None, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return ``W x + b + scale · B A a``, ``[N, O]``, and ``A a``, ``[N, r]``."""
    y = F.linear(x, weight, bias)
    inner = F.linear(x if adapter_x is None else adapter_x, down)
    return y.addmm_(inner, up.T, alpha=scale), inner


def _scaled(scale: float, one: Tensor, other: Tensor) -> Tensor:
    """Return ``scale · one @ other`` from one kernel."""
    return torch.addmm(one.new_empty(()), one, other, beta=0, alpha=scale)


def _dtype(x: Tensor, *weights: Tensor) -> torch.dtype | None:
    """Return the dtype of every product: autocast's, or the one that all tensors have; None: there is no such dtype."""
    if not torch.is_autocast_enabled(x.device.type):
        return x.dtype if all(weight.dtype == x.dtype for weight in weights) else None
    casts = all(one.is_floating_point() and one.dtype != torch.float64 for one in (x, *weights))
    return torch.get_autocast_dtype(x.device.type) if casts else None


def _drops(dropout: Any) -> bool:
    """Return whether a dropout layer changes its input."""
    return dropout.training and getattr(dropout, "p", 0) > 0


def _changed(module: nn.Module) -> bool:
    """Return whether something watches or replaces a layer's own forward pass, which would then have to be called."""
    own = vars(module)
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or "forward" in own)
