"""lion: the Lion optimizer (Chen et al. 2023, Algorithm 2), decoupled weight decay, clipping in the step.

c = b1 m + (1 - b1) g;  p <- p - lr (sign(c) + wd p);  m <- b2 m + (1 - b2) g.
Floor in fp32: read p, g, m and write p, m, 20 bytes per parameter; 22 with fp32 masters, bf16 gradients and bf16
copies (read 4 + 2 + 4, write 4 + 4 + 2, and 2 more for reading the gradient's norm).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from camae.errors import CamaeError
from camae.kernels._dispatch import Backend, choose, default_backend, reference_backend, triton_backend

if TYPE_CHECKING:
    from camae.kernels.lion.triton import Chunks

_LOW = (torch.bfloat16, torch.float16)


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


def backends(device: torch.device | str = "cpu") -> tuple[Backend, ...]:
    """The op's back-ends and whether each can run on `device`."""
    return (triton_backend(device), reference_backend())


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a parameter shared among processes (DTensor, FSDP2); else the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class Lion(torch.optim.Optimizer):
    """Lion with decoupled weight decay and optional global-norm clipping.

    params:    parameters or groups; a bf16 or fp16 parameter gets an fp32 master copy in the state, and the
               step is taken on the master.
    clip_norm: bring the global norm of all gradients down to this inside the step; None: no clipping.
    backend:   "triton" (one launch for all parameters; the default on CUDA) or "reference" (torch's foreach).

    The norm before clipping is left in `last_norm` (a scalar tensor) when clipping is on. As in torch's fused
    optimizers, a scalar tensor in the attribute `found_inf` that is 1 makes the step change nothing, decided on the
    device.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        clip_norm: float | None = None,
        backend: str | None = None,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.clip_norm, self.backend = clip_norm, backend
        self.last_norm: torch.Tensor | None = None
        self.found_inf: torch.Tensor | None = None
        self._chunks: dict[tuple[int, ...], Chunks] = {}

    def _state_of(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[p]
        if not state:
            low = p.dtype in _LOW
            state["momentum"] = torch.zeros_like(p, dtype=torch.float32 if low else p.dtype)
            if low:
                state["master"] = p.detach().to(torch.float32, copy=True)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but masters and momenta of low-precision parameters stay fp32 (torch would cast them)."""
        super().load_state_dict(state_dict)
        saved = state_dict["state"]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in enumerate(params):
            if p.dtype in _LOW and i in saved:
                self.state[p] = {k: v.to(p.device, torch.float32, copy=True) for k, v in saved[i].items()}

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:  # type: ignore[override]
        """One step over all groups; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with_grad = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not with_grad:
            return loss
        device = with_grad[0][1].device
        if choose("lion", self.backend, backends(device), default_backend(device)) == "triton":
            self._step_triton(with_grad)
        else:
            self._step_reference(with_grad)
        return loss

    def _step_reference(self, with_grad: list[tuple[dict[str, Any], torch.Tensor]]) -> None:
        scale = None
        if self.clip_norm is not None:
            self.last_norm = global_norm([p.grad for _, p in with_grad])  # type: ignore[misc]
            scale = clip_scale(self.last_norm, self.clip_norm)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._foreach_group(group, params, scale)

    def _foreach_group(
        self, group: dict[str, Any], params: list[torch.Tensor], scale: torch.Tensor | None
    ) -> None:
        beta1, beta2 = group["betas"]
        states = [self._state_of(p) for p in params]
        momentum = [_local(s["momentum"]) for s in states]
        targets = [_local(s.get("master", p)) for s, p in zip(states, params, strict=True)]
        grads: Any = [_local(p.grad).to(m.dtype) for p, m in zip(params, momentum, strict=True)]  # type: ignore[arg-type]
        if scale is not None:
            grads = torch._foreach_mul(grads, scale)
        if self.found_inf is not None:  # the momentum itself as gradient leaves it as it is
            skip = self.found_inf.to(momentum[0].device) > 0
            grads = [torch.where(skip, m, g) for m, g in zip(momentum, grads, strict=True)]
        update = torch._foreach_lerp(momentum, grads, 1 - beta1)
        torch._foreach_sign_(update)
        torch._foreach_add_(update, targets, alpha=group["weight_decay"])
        if self.found_inf is not None:
            torch._foreach_mul_(update, (~skip).to(update[0].dtype))
        torch._foreach_add_(targets, update, alpha=-group["lr"])
        torch._foreach_lerp_(momentum, grads, 1 - beta2)
        for s, p in zip(states, params, strict=True):
            if "master" in s:
                p.copy_(s["master"])

    def _step_triton(self, with_grad: list[tuple[dict[str, Any], torch.Tensor]]) -> None:
        """One launch for each (betas, dtypes) there is, normally one; one more for the norm when clipping."""
        from camae.kernels.lion import triton as lion_triton

        launches: dict[tuple[Any, ...], list[tuple[dict[str, Any], torch.Tensor]]] = {}
        for group, p in with_grad:
            if p.dtype not in lion_triton.TYPES or not (
                _local(p).is_contiguous() and _local(p.grad).is_contiguous()  # type: ignore[arg-type]
            ):
                raise CamaeError(
                    f"lion's kernel takes contiguous fp32, bf16 or fp16 parameters and gradients, not "
                    f"{p.dtype}; use backend='reference'"
                )
            key = (group["betas"], p.grad.dtype, p.dtype if p.dtype in _LOW else None)  # type: ignore[union-attr]
            launches.setdefault(key, []).append((group, p))
        prepared = [(key, *self._tables(members)) for key, members in launches.items()]
        device = with_grad[0][1].device
        if self.clip_norm is None:
            scale = torch.ones(1, dtype=torch.float32, device=device)
        else:
            squares = [lion_triton.sum_of_squares(t, c, key[1]) for key, t, c, _ in prepared]
            self.last_norm = torch.stack(squares).sum().sqrt().to(torch.float32)
            scale = clip_scale(self.last_norm, self.clip_norm).reshape(1)
        if self.found_inf is not None:
            scale = torch.where(self.found_inf > 0, torch.nan, scale)
        for (betas, grad_dtype, copy_dtype), table, chunks, rates_N2 in prepared:
            lion_triton.step(table, chunks, rates_N2, scale, betas, grad_dtype, copy_dtype)

    def _tables(
        self, members: list[tuple[dict[str, Any], torch.Tensor]]
    ) -> tuple[torch.Tensor, Chunks, torch.Tensor]:
        """Addresses of this step's tensors, the chunk table (made once), learning rates and weight decays."""
        from camae.kernels.lion import triton as lion_triton

        params = [p for _, p in members]
        device = params[0].device
        states = [self._state_of(p) for p in params]
        low = ["master" in s for s in states]
        columns = (
            [_local(s.get("master", p)) for s, p in zip(states, params, strict=True)],
            [_local(p.grad) for p in params],  # type: ignore[arg-type]
            [_local(s["momentum"]) for s in states],
            [_local(p) if is_low else None for p, is_low in zip(params, low, strict=True)],
        )
        sizes = tuple(_local(p).numel() for p in params)
        if sizes not in self._chunks:
            self._chunks[sizes] = lion_triton.Chunks(sizes, device)
        rates = torch.tensor([[g["lr"], g["weight_decay"]] for g, _ in members], dtype=torch.float32)
        return (
            lion_triton.addresses(columns, device),
            self._chunks[sizes],
            rates.to(device, non_blocking=True),
        )
