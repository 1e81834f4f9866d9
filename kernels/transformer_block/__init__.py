"""transformer_block: a whole ViT block for inference in two fused ops (CPU, float32)."""
