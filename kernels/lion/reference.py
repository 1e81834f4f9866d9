"""Plain-torch form of the Lion step, and gradient clipping by the global norm."""

from __future__ import annotations

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
    """One step in place, as the paper writes it."""
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


def clip_scale(norm: torch.Tensor, clip_norm: float | None) -> torch.Tensor:
    """The factor that brings `norm` down to `clip_norm`; 1 where it is below or there is no limit."""
    if clip_norm is None:
        return torch.ones_like(norm)
    return torch.clamp(clip_norm / (norm + 1e-6), max=1.0)
