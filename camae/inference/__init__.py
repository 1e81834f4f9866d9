"""Encoders for inference: packed weights and fused blocks, one channel at a time, and channels imputed.

Made from a trained `camae.model`, never trained; `camae.embedding` takes them like any other model.
"""

from __future__ import annotations

from camae.inference.accelerate import accelerate
from camae.inference.bag_of_channels import BagOfChannels
from camae.inference.imputed_channels import ImputedChannels

__all__ = ["BagOfChannels", "ImputedChannels", "accelerate"]
