"""Settings by name: the rows of the paper's Table 3 (`recipe = "ca_mae_vit_l16+"`), and recipes for small budgets."""

from __future__ import annotations

# The channel-agnostic rows ("+": Fourier loss, alpha 0.01), and L/8+, which the paper did not train. Its text gives
# batches "of up to 16,384 crops", separate decoders per channel, 75 % masking for B/16 and 85 % for L/16; how long each
# was trained it does not say, so `steps` stays the user's. L/8+ takes what L/16+ has.
_ALL: dict[str, object] = {
    "optimizer": "lion",
    "betas": (0.9, 0.95),
    "weight_decay": 0.05,
    "schedule": "onecycle",
    "warmup": 0.1,
    "batch_size": 16_384,
    "micro_batch": 64,
}
_B: dict[str, object] = _ALL | {"model": "ca_mae_vit_b16", "lr": 1e-4, "mask_ratio": 0.75}
_L: dict[str, object] = _ALL | {"lr": 3e-5, "mask_ratio": 0.85, "alpha": 0.01}

TABLE_3: dict[str, dict[str, object]] = {
    "ca_mae_vit_b16": _B | {"alpha": 0.0},
    "ca_mae_vit_b16+": _B | {"alpha": 0.01},
    "ca_mae_vit_l16+": _L | {"model": "ca_mae_vit_l16"},
    "ca_mae_vit_l8+": _L | {"model": "ca_mae_vit_l8", "recompute": 1},
}

# fast-cpu: compared with its variants at equal FLOPs by bench/fast_cpu.py. one-gpu-hour: an hour at 1,250 crops/s
# measured on an H100, docs/beyond.md.
SMALL_BUDGETS: dict[str, dict[str, object]] = {
    "fast-cpu": {
        "model": "ca_mae_vit_ti16",
        "optimizer": "adamw",
        "lr": 3e-3,
        "schedule": "onecycle",
        "batch_size": 16,
        "steps": 1600,
    },
    "one-gpu-hour": {
        "model": "ca_mae_vit_b16",
        "optimizer": "adamw",
        "lr": 4e-4,
        "schedule": "onecycle",
        "batch_size": 1024,
        "micro_batch": 128,
        "ema": 0.999,
        "ema_final": True,
        "steps": 4400,
    },
}

RECIPES = TABLE_3 | SMALL_BUDGETS

# `model_options` of each recipe, which a user's options add to.
MODEL_OPTIONS: dict[str, dict[str, object]] = {
    name: {"drop_path": 0.3 if "_vit_l" in name else 0.1, "decoder": "paper"} for name in TABLE_3
} | {
    "fast-cpu": {
        "crop": 128,
        "width": 96,
        "depth": 4,
        "heads": 3,
        "drop_path": 0.0,
        "layer_scale": 1.0,
        "decoder": {
            "width": 64,
            "depth": 0,
            "heads": 4,
            "cross_depth": 2,
            "cross_heads": 4,
            "context": "visible",
            "cross_residual": True,
            "local_start": True,
            "part": 0.65,
        },
    },
    "one-gpu-hour": {"drop_path": 0.0, "layer_scale": 1.0, "decoder": "small"},
}
