"""`camae.embed`: vectors of images in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camae.embedding.best_layer import with_chosen_layer
from camae.embedding.config import EmbedConfig, EmbedOptions
from camae.embedding.default_model import ModelSource, resolve_model
from camae.embedding.encode import EncodeOptions, compute_type, default_tokens_per_pass
from camae.embedding.inputs import ImageSet, Vectors
from camae.embedding.intensity import STATISTICS
from camae.embedding.patch_maps import stitch
from camae.embedding.plan import EmbedPlan
from camae.embedding.regions import Regions, is_one_array, regions_per_image
from camae.embedding.validate import check_layers
from camae.errors import CamaeError
from camae.inference.imputed_channels import ImputedChannels
from camae.model.backends import BackendSettings, using_backends
from camae.model.interface import ChannelNames, Config, Images, Model, TransformerConfig
from camae.model.pooling import MAPS, MOMENTS, PER_CHANNEL


def embed(
    images: Images,
    channels: ChannelNames,
    model: ModelSource | None = None,
    pool: str = EmbedConfig.pool,
    *,
    region: Regions | None = None,
    region_size: int | None = None,
    tiles: str | None = EmbedConfig.tiles,
    tile: str | None = None,
    overlap: float = EmbedConfig.overlap,
    layers: int | str | Sequence[int] | None = EmbedConfig.layers,
    value_range: tuple[float, float] | None = EmbedConfig.value_range,
    dtype: torch.dtype | str | None = EmbedConfig.dtype,
    tokens_per_pass: int | None = EmbedConfig.tokens_per_pass,
    intensity: bool = EmbedConfig.intensity,
    impute: Sequence[str] = EmbedConfig.impute,
    backends: BackendSettings = None,
) -> Vectors:
    """Embed images of any channel set.

    images: (C, H, W), (B, C, H, W) or a list of (C_i, H, W); uint8, uint16 or float; torch or numpy.
    channels: names, shared by all images or one list per image; distinct within an image.
    model: a model, a path, or None for the one named by `camae.use` or CAMAE_MODEL.
    region: vectors of cells or regions instead of images: a boolean mask (H, W), masks (R, H, W), an integer label
        image (H, W; each label above 0 is a region), or a table of centers in pixels, with the columns
        Metadata_Cell_X and Metadata_Cell_Y or CellProfiler's Location_Center_X and Location_Center_Y (also
        Nuclei_Location_Center_X ...). For a batch or list, one entry per image. Around each region a model-sized
        window is taken (moved into the image at its edge) and standardized, and only patches that touch the region
        are encoded; regions larger than the window get several windows, and the mean is over their tokens.
    region_size: side in px of the square that a row of a table stands for; default the whole window.
    pool, tiles (or tile), overlap, layers, value_range, dtype, tokens_per_pass, backends: as in `EmbedConfig`. A tile
        with a constant plane is left out, with a warning.
    impute: channels that are predicted from an image's others where it lacks them, and encoded with it; their vectors
        come after those of its own, in this order.
    intensity: statistics of stored values after each vector (`camae.embedding.intensity_names`), averaged over tiles.

    Returns float32 of the input's kind and device: (D,) for one image, (B, D) for a batch or a list of equal
    channel counts, with "per_channel" (C, D) and (B, C, D); a list of vectors when channel counts differ. "moments"
    have 2D values, means and then standard deviations. "patch" gives maps, (C, h, w, D) for an image of h x w patches,
    and "patch_mean" their mean over channels, (h, w, D); with tiles side by side the map spans them, and patches of
    tiles that are left out are NaN. With intensity the last axis is longer by 7C (all statistics of a channel, then
    the next), with a pooling per channel by 7. Several layers add an axis before these last ones: (B, L, D), (B, L, C,
    D). With regions (D,) for a single mask, else (R, D) per image, and a list of these when there are several images.
    Raises CamaeError for whatever would give silently wrong vectors.
    """
    chosen: EmbedOptions = {"tiles": tiles, "tile": tile, "overlap": overlap, "value_range": value_range}
    chosen |= {"pool": pool, "layers": layers, "dtype": dtype, "tokens_per_pass": tokens_per_pass}
    chosen |= {"intensity": intensity, "impute": impute}
    config = EmbedConfig.of(**(chosen | EmbedOptions(backends=backends)))
    _check_region_options(config, region, region_size)
    source = resolve_model(model)
    config = with_chosen_layer(config, source)
    inputs = ImageSet.of(images, channels)
    if config.impute:
        source = _imputing(source, inputs, config.impute)
    plan, net = _planned(inputs, source, config, region, region_size)
    computed, blocks = (
        compute_type(net, config.dtype, net.device.type),
        check_layers(config.layers, net.config),
    )
    options = EncodeOptions(config.pool, config.interpolate, computed, blocks)
    with using_backends(net, config.backends):
        found = plan.encode(net, options, config.tokens_per_pass or default_tokens_per_pass(net))
    return _arranged(found, plan, config, as_array=is_one_array(region))


def _planned(
    inputs: ImageSet, net: Model, config: EmbedConfig, region: Regions | None, region_size: int | None
) -> tuple[EmbedPlan, Model]:
    """Windows of the images, or of their regions, with the model that encodes them."""
    inputs.check_values(net.config.standardization, config.value_range)
    plan = EmbedPlan(net.config, inputs, config.value_range, config.intensity)
    if config.pool in MAPS:
        plan.add_maps(config.tiles)
    elif region is None:
        plan.add_images(config.tiles, config.overlap)
    else:
        plan.add_regions(regions_per_image(region, len(inputs), inputs.single), region_size)
    return plan, net


def _imputing(model: Model, inputs: ImageSet, impute: Sequence[str]) -> Model:
    """The model with imputed channels. Raises CamaeError for a channel that every image has."""
    if shown := [name for name in impute if all(name in names for names in inputs.names)]:
        raise CamaeError(f"every image has the channel {shown[0]!r}; leave it out of impute")
    return ImputedChannels(model, impute)


def _check_region_options(config: EmbedConfig, region: Regions | None, region_size: int | None) -> None:
    if config.pool in MAPS and (region is not None or config.intensity):
        raise CamaeError(
            f"pool={config.pool!r} gives a map of whole images; leave out region= and intensity="
        )
    if region is not None and config.impute:
        raise CamaeError("impute= takes whole images; leave out region=")
    if region is None and region_size is not None:
        raise CamaeError("region_size needs region=, a table of centers")
    if region is not None and config.tiles not in (None, "cover"):
        raise CamaeError(f"region= takes its own windows; leave out tiles={config.tiles!r}")


def _arranged(
    found: list[list[torch.Tensor]], plan: EmbedPlan, config: EmbedConfig, as_array: bool
) -> Vectors:
    """Vectors of each image in the shape and kind that `embed` returns; as one array where asked for and possible."""
    if isinstance(config.layers, int):
        found = [[vector[0] for vector in vectors] for vectors in found]
    if config.pool in MAPS:
        return _maps(found, plan)
    per_image = []
    for vectors, count, names in zip(found, plan.counts, plan.images.names, strict=True):
        if count == 0:
            per_image.append(_no_vectors(plan.config, config, len(names)))
        else:
            per_image.append(vectors[0] if count is None else torch.stack(vectors))
    one_each = all(count is None for count in plan.counts)
    equal = len({v.shape for v in per_image}) == 1 and not plan.images.ragged
    return plan.images.like_input(per_image, stack=(as_array or one_each) and equal)


def _maps(found: list[list[torch.Tensor]], plan: EmbedPlan) -> Vectors:
    """Patch maps of each image, of its tiles' tokens."""
    per_image = []
    for i, tiles in enumerate(found):
        windows = [window for window in plan.windows if window.image == i]
        per_image.append(stitch(tiles, windows, plan.config.patch))
    equal = len({tensor.shape for tensor in per_image}) == 1 and not plan.images.ragged
    return plan.images.like_input(per_image, stack=equal)


def _no_vectors(model: Config, config: EmbedConfig, n_channels: int) -> torch.Tensor:
    """The vectors of an image without regions: (0, D), with layers and channels as asked for."""
    layers = (len(config.layers),) if isinstance(config.layers, tuple) else ()
    per_channel = config.pool in PER_CHANNEL
    planes = (n_channels,) if per_channel else ()
    width = model.width if isinstance(model, TransformerConfig) else 0
    width *= 2 if config.pool in MOMENTS else 1
    if config.intensity:
        width += len(STATISTICS) * (1 if per_channel else n_channels)
    return torch.empty(0, *layers, *planes, width)
