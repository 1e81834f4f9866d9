"""Lion optimizer class: states, fp32 master copies, gradient clipping, and its two back-ends."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.optim.optimizer import ParamsT, StateDict

from camae.errors import CamaeError
from camae.kernels import _dispatch
from camae.kernels.lion.reference import clip_scale, global_norm

if TYPE_CHECKING:
    from camae.kernels.lion.triton import Chunks, Table

_LOW = (torch.bfloat16, torch.float16)
ParamGroup = dict[str, Any]  # torch's: "params", "lr", "betas", "weight_decay"
LaunchKey = tuple[
    tuple[float, float], torch.dtype, torch.dtype | None
]  # betas, dtypes of gradients and copies


class Member(NamedTuple):
    """A parameter with a gradient, and the group it belongs to."""

    group: ParamGroup
    param: torch.Tensor
    grad: torch.Tensor


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
        params: ParamsT,
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

    def load_state_dict(self, state_dict: StateDict) -> None:
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
        members = [Member(g, p, p.grad) for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not members:
            return loss
        if _dispatch.choose("lion", self.backend, members[0].param.device) == "triton":
            self._step_triton(members)
        else:
            self._step_reference(members)
        return loss

    def _step_reference(self, members: list[Member]) -> None:
        scale = None
        if self.clip_norm is not None:
            self.last_norm = global_norm([m.grad for m in members])
            scale = clip_scale(self.last_norm, self.clip_norm)
        for group in self.param_groups:
            of_group = [m for m in members if m.group is group]
            if of_group:
                self._foreach_group(group, of_group, scale)

    def _foreach_group(self, group: ParamGroup, members: list[Member], scale: torch.Tensor | None) -> None:
        beta1, beta2 = group["betas"]
        states = [self._state_of(m.param) for m in members]
        momentum = [_local(s["momentum"]) for s in states]
        targets = [_local(s.get("master", m.param)) for s, m in zip(states, members, strict=True)]
        grads = [_local(m.grad).to(b.dtype) for m, b in zip(members, momentum, strict=True)]
        if scale is not None:
            grads = list(torch._foreach_mul(grads, scale))
        if self.found_inf is not None:  # the momentum itself as gradient leaves it as it is
            skip = self.found_inf.to(momentum[0].device) > 0
            grads = [torch.where(skip, b, g) for b, g in zip(momentum, grads, strict=True)]
        update = torch._foreach_lerp(momentum, grads, 1 - beta1)
        torch._foreach_sign_(update)
        torch._foreach_add_(update, targets, alpha=group["weight_decay"])
        if self.found_inf is not None:
            torch._foreach_mul_(update, (~skip).to(update[0].dtype))
        torch._foreach_add_(targets, update, alpha=-group["lr"])
        torch._foreach_lerp_(momentum, grads, 1 - beta2)
        for s, m in zip(states, members, strict=True):
            if "master" in s:
                m.param.copy_(s["master"])

    def _step_triton(self, members: list[Member]) -> None:
        """One launch for each (betas, dtypes) there is, normally one; one more for the norm when clipping."""
        from camae.kernels.lion import triton as lion_triton

        launches: dict[LaunchKey, list[Member]] = {}
        for m in members:
            _check_layout(m, lion_triton.TYPES)
            copy_dtype = m.param.dtype if m.param.dtype in _LOW else None
            launches.setdefault((m.group["betas"], m.grad.dtype, copy_dtype), []).append(m)
        prepared = [(key, *self._tables(of_launch)) for key, of_launch in launches.items()]
        if self.clip_norm is None:
            scale = torch.ones(1, dtype=torch.float32, device=members[0].param.device)
            if self.found_inf is not None:
                scale = torch.where(self.found_inf > 0, torch.nan, scale)
        else:
            tables = [(table, chunks, key[1]) for key, table, chunks, _ in prepared]
            norm, scale = lion_triton.clipping(tables, self.clip_norm, self.found_inf)
            self.last_norm = norm[0]
        for (betas, grad_dtype, copy_dtype), table, chunks, rates_N2 in prepared:
            lion_triton.step(table, chunks, rates_N2, scale, betas, grad_dtype, copy_dtype)

    def _tables(self, members: list[Member]) -> tuple[Table, Chunks, torch.Tensor]:
        """Addresses of this step's tensors, the chunk table (made once), learning rates and weight decays."""
        from camae.kernels.lion import triton as lion_triton

        device = members[0].param.device
        states = [self._state_of(m.param) for m in members]
        columns = (
            [_local(s.get("master", m.param)) for s, m in zip(states, members, strict=True)],
            [_local(m.grad) for m in members],
            [_local(s["momentum"]) for s in states],
            [_local(m.param) if "master" in s else None for s, m in zip(states, members, strict=True)],
        )
        sizes = tuple(_local(m.param).numel() for m in members)
        if sizes not in self._chunks:
            self._chunks[sizes] = lion_triton.Chunks(sizes, device)
        rates = torch.tensor([[m.group["lr"], m.group["weight_decay"]] for m in members], dtype=torch.float32)
        return (
            lion_triton.address_table(columns, device),
            self._chunks[sizes],
            rates.to(device, non_blocking=True),
        )


def _check_layout(member: Member, dtypes: Container[torch.dtype]) -> None:
    contiguous = _local(member.param).is_contiguous() and _local(member.grad).is_contiguous()
    if member.param.dtype not in dtypes or not contiguous:
        raise CamaeError(
            "lion's kernel takes contiguous fp32, bf16 or fp16 parameters and gradients, not "
            f"{member.param.dtype}; use backend='reference'"
        )
