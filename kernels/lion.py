"""lion: the Lion optimizer (Chen et al. 2023, Algorithm 2), decoupled weight decay, clipping in the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def lion_reference(
    param: torch.Tensor,
    grad: torch.Tensor,
    momentum: torch.Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    grad_scale: float | torch.Tensor = 1.0,
) -> None:
    """One step in place: p <- p - lr * (sign(b1 m + (1 - b1) g) + wd p); m <- b2 m + (1 - b2) g."""
    g = grad.to(momentum.dtype) * grad_scale
    update = torch.sign(beta1 * momentum + (1 - beta1) * g)
    param.sub_(lr * (update + weight_decay * param))
    momentum.copy_(beta2 * momentum + (1 - beta2) * g)


def global_norm(grads: list[torch.Tensor]) -> torch.Tensor:
    """The L2 norm over all gradients, a scalar on the device (fp32, or fp64 if any gradient is)."""
    if not grads:
        return torch.zeros(())
    norms = torch._foreach_norm([g if g.dtype == torch.float64 else g.float() for g in grads])
    return torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))


def clip_scale(norm: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """The factor that brings `norm` down to `clip_norm`; 1 where it is below."""
    return torch.clamp(clip_norm / (norm + 1e-6), max=1.0)


class Lion(torch.optim.Optimizer):
    """Lion with decoupled weight decay and optional global-norm clipping.

    params:    parameters or groups; a bf16 or fp16 parameter gets an fp32 master copy in the state, and the
               step is taken on the master.
    clip_norm: bring the global norm of all gradients down to this inside the step; None: no clipping.

    The norm before clipping is left in `last_norm` (a scalar tensor) when clipping is on.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        clip_norm: float | None = None,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.clip_norm = clip_norm
        self.last_norm: torch.Tensor | None = None

    def _state_of(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[p]
        if not state:
            low = p.dtype in (torch.bfloat16, torch.float16)
            state["momentum"] = torch.zeros_like(p, dtype=torch.float32 if low else p.dtype)
            if low:
                state["master"] = p.detach().to(torch.float32, copy=True)
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:  # type: ignore[override]
        """One step over all groups; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale: float | torch.Tensor = 1.0
        if self.clip_norm is not None:
            grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
            self.last_norm = global_norm(grads)
            scale = clip_scale(self.last_norm, self.clip_norm)
        for group in self.param_groups:
            self._step_group(group, scale)
        return loss

    def _step_group(self, group: dict[str, Any], scale: float | torch.Tensor) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        beta1, beta2 = group["betas"]
        states = [self._state_of(p) for p in params]
        momentum = [s["momentum"] for s in states]
        targets = [s.get("master", p) for s, p in zip(states, params, strict=True)]
        grads = [p.grad.to(m.dtype) for p, m in zip(params, momentum, strict=True)]
        if not isinstance(scale, float):
            grads = torch._foreach_mul(grads, scale)
        update = torch._foreach_lerp(momentum, grads, 1 - beta1)
        torch._foreach_sign_(update)
        torch._foreach_add_(update, targets, alpha=group["weight_decay"])
        torch._foreach_add_(targets, update, alpha=-group["lr"])
        torch._foreach_lerp_(momentum, grads, 1 - beta2)
        for s, p in zip(states, params, strict=True):
            if "master" in s:
                p.copy_(s["master"])
