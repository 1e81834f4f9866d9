"""Encoders for inference: packed weights and fused blocks, and one channel at a time.

Made from a trained `camae.model`, never trained; `camae.embedding` takes them like any other model.
"""

from __future__ import annotations

from camae.inference.accelerate import accelerate
from camae.inference.bag_of_channels import BagOfChannels

__all__ = ["BagOfChannels", "accelerate"]
