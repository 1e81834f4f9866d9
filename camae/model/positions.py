"""Two-dimensional sine-cosine positions, the same for every channel (paper, section 4.2.2)."""

from __future__ import annotations

import torch


def sincos_positions(
    grid_h: int, grid_w: int, width: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Position table (grid_h * grid_w, width), row-major: [sin h, cos h, sin w, cos w], each width/4 long.

    omega_i = 10000^(-i / (width/4)) on the integer grid. `scale` multiplies the coordinates: a grid of g
    patches is mapped onto the g0 patches a model was trained with by scale = g0 / g. On the CPU, also while a
    model is made on the meta device.
    """
    quarter = width // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    row = scale * torch.arange(grid_h, dtype=torch.float64, device="cpu")[:, None] * omega
    column = scale * torch.arange(grid_w, dtype=torch.float64, device="cpu")[:, None] * omega
    h = torch.cat([row.sin(), row.cos()], 1)[:, None].expand(grid_h, grid_w, 2 * quarter)
    w = torch.cat([column.sin(), column.cos()], 1)[None].expand(grid_h, grid_w, 2 * quarter)
    return torch.cat([h, w], 2).reshape(grid_h * grid_w, width).to(dtype)
