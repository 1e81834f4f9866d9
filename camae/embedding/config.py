"""Embedding configuration: every option of `camae.embed` and `camae.embed_screen`, declared once.

Imports neither torch nor NumPy: the shell makes its options from the fields in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from camae.errors import CamaeError
from camae.typed_settings import check_settings, frozen

if TYPE_CHECKING:
    import os

    import torch

    from camae.dataloader.manifest import Manifest
    from camae.model.backends import BackendSettings

T = TypeVar("T")
R = TypeVar("R", bound="ReadOptions")

TILES = ("cover", "grid", "center", "interpolate")


def _option(default: T, help: str) -> T:
    """A field with a default and one sentence on it, which is also the help text at the shell."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Reader options of an image folder, as in `camae.dataloader.read_manifest`."""

    format: str | None = _option(
        None, "reader of a folder, e.g. 'rxrx1' or 'gallery'; default: the one that fits it"
    )
    incomplete: str = _option(
        "error",
        "sites that lack a channel or a file that the others have: 'error', 'skip' (left out), 'mixed' (sites with "
        "fewer channels are kept) or 'keep' (also those whose files are not here)",
    )
    pattern: str | None = _option(
        None,
        "regular expression for file names of a plain folder, with groups plate, well, site, channel; without channel, "
        "each file holds all channels of a field",
    )
    channels: tuple[str, ...] = _option(
        (),
        "channels to use, in this order; for files that hold several channels and do not name them, their names in the "
        "files' order",
    )
    z: str | None = _option(
        None,
        "of files with several z planes: 'max' or 'mean' (projections), or the number of one plane, counted from 0",
    )
    time: str | None = _option(
        None,
        "of files with several time points: 'each' (sites of their own) or the number of one, counted from 0",
    )
    variant: str | None = _option(
        None,
        "of JUMP-lite's images: 'zstd', 'hq', 'mq', 'd20', or the path of a store; default the only one that is here",
    )
    metadata: tuple[str, ...] = _option(
        (),
        "table (CSV, TSV, Parquet) that says what is in which well, joined on the columns it shares; may be several",
    )
    negative_controls: tuple[str, ...] = _option(
        (), "perturbation that is a negative control; may be several"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def labels(self) -> bool:
        """Whether sites are labeled while they are read."""
        return bool(self.metadata or self.negative_controls)

    def of_manifest(self: R) -> R:
        """The same options for sites that are found and labeled, and whose planes are chosen, already."""
        labeled = replace(
            self, metadata=(), negative_controls=(), channels=(), z=None, time=None, variant=None
        )
        return replace(labeled, format=None, pattern=None)

    def read(self, data: Manifest | str | os.PathLike[str]) -> Manifest:
        """The manifest of `data`: itself, a file, or a folder read with these options."""
        from camae.dataloader import read_manifest

        return read_manifest(
            data,
            self.format,
            self.incomplete,
            self.pattern,
            metadata=self.metadata,
            negative_controls=self.negative_controls,
            channels=self.channels or None,
            z=self.z,
            time=self.time,
            variant=self.variant,
        )


class ReadKeywords(TypedDict, total=False):
    """Keyword arguments of the commands that read a folder: the fields of `ReadOptions`."""

    format: str | None
    incomplete: str
    pattern: str | None
    channels: tuple[str, ...]
    z: str | None
    time: str | None
    variant: str | None
    metadata: tuple[str, ...]
    negative_controls: tuple[str, ...]


class EmbedOptions(TypedDict, total=False):
    """Keyword arguments of `camae.embed_screen`: the fields of `EmbedConfig` in the forms that Python users have."""

    format: str | None
    incomplete: str
    pattern: str | None
    channels: Sequence[str]
    z: int | str | None
    time: int | str | None
    variant: str | os.PathLike[str] | None
    metadata: Sequence[str | os.PathLike[str]]
    negative_controls: Sequence[str]
    tile: str | None  # the same as tiles
    tiles: str | None
    overlap: float
    pool: str
    intensity: bool
    impute: Sequence[str]
    layers: int | str | Sequence[int] | None
    value_range: tuple[float, float] | None
    dtype: torch.dtype | str | None
    backends: BackendSettings
    level: str
    linear: str | None
    compile: bool
    bag_of_channels: bool
    sites_per_shard: int
    tokens_per_pass: int | None
    device: torch.device | str | None
    rank: int | None
    world: int | None
    ray_workers: int
    ray_gpus: float
    ray_cpus: float
    reader: str | None
    threads: int | None
    anndata: bool
    jump_lite: str | os.PathLike[str] | None
    quiet: bool


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(ReadOptions):
    """Embedding configuration. `EmbedConfig.of(**options)` makes one from the arguments of the public functions.

    Raises CamaeError for a value that cannot be, before any image is read or file written. What decides the vectors
    (and the packing of passes, which decides their rounding) is kept in the ledger and in every file of a screen.
    """

    # What the vectors are.
    tiles: str | None = _option(
        None,
        "images larger than the model's crop: 'cover' (tiles that reach every pixel), 'grid' (tiles side by side "
        "from the top left, a rest is left out), 'center' (one tile) or 'interpolate' (whole, with interpolated "
        "positions); default 'grid' for a screen, and for single images none, which takes the model's crop alone",
    )
    overlap: float = _option(0.0, "least share of a tile that neighbors of 'cover' have in common")
    pool: str = _option(
        "mean",
        "'mean' over patch tokens, 'cls' (class token), 'per_channel' (a mean for each channel), 'moments' (mean and "
        "standard deviation over patch tokens) or 'moments_per_channel'; of images in memory also 'patch', a map of "
        "the patches' vectors, and 'patch_mean', its mean over channels",
    )
    intensity: bool = _option(
        False,
        "also mean, standard deviation and quantiles of each plane before standardization, in the images' units",
    )
    impute: tuple[str, ...] = _option(
        (),
        "channels that are predicted from the others by the decoders where an image lacks them, and encoded with it; "
        "training with mask_channels prepares for it",
    )
    layers: int | str | tuple[int, ...] | None = _option(
        None,
        "encoder block to take the output of instead of the last one, before the final norm: counted from 0 or, "
        "negative, from the last; may be several; 'best' is the one that `camae evaluate layers` chose",
    )
    value_range: tuple[float, float] | None = _option(
        None, "lowest and highest possible value of the images; needed for float images"
    )
    dtype: str | None = _option(
        None, "compute type, 'float32' or 'bfloat16'; default bfloat16 on a GPU, else float32"
    )
    backends: str | None = _option(
        None,
        "back-ends of the ops, such as 'attention=triton,elementwise=reference'; default those of the device, see "
        "`camae doctor`",
    )
    level: str = _option("well", "rows of the table: 'well' (mean over sites) or 'site'")
    # Which form of the model computes them.
    linear: str | None = _option(None, "encoder rewritten for speed, with layers in 'float32' or 'bfloat16'")
    compile: bool = _option(False, "encoder rewritten for speed, with torch.compile")
    bag_of_channels: bool = _option(False, "each channel encoded alone: another embedding")
    # How a screen is split.
    sites_per_shard: int = _option(256, "sites of one file, written at once")
    tokens_per_pass: int | None = _option(
        None, "encoder tokens computed at once; default by the memory of the device"
    )
    # Where it runs.
    device: str | None = _option(None, "'cpu', 'cuda', 'cuda:1' ...; default a GPU if there is one")
    rank: int | None = _option(
        None, "number of this process among `world`; default what torchrun or SLURM says"
    )
    world: int | None = _option(None, "processes that share the screen; default what torchrun or SLURM says")
    ray_workers: int = _option(0, "Ray actors that embed the screen, 0 for none")
    ray_gpus: float = _option(0.0, "GPUs of each Ray actor")
    ray_cpus: float = _option(1.0, "CPUs of each Ray actor")
    reader: str | None = _option(
        None, "image back-end: 'native' (default: 8 and 16 bit), 'tifffile' (also float) or 'dali'"
    )
    threads: int | None = _option(None, "sites read at once; default half the cores, at most 8")
    # What is written and shown besides the table.
    anndata: bool = _option(False, "also write the table as .h5ad")
    jump_lite: str | None = _option(
        None,
        "site index of JUMP-lite, to be embedded in place of DATA; embeddings are also written as the Cell Painting "
        "Gallery has them, a file for each site in workspace_dl/embeddings",
    )
    quiet: bool = _option(False, "no progress bar")

    @classmethod
    def of(cls, base: EmbedConfig | None = None, **options: Unpack[EmbedOptions]) -> EmbedConfig:
        """`base` with changed options, in any form of `EmbedOptions`; `tile` and `tiles` are the same option."""
        check_base(base, cls)
        known = {f.name for f in fields(cls)}
        if unknown := sorted(options.keys() - known - {"tile"}):
            raise CamaeError(
                f"unknown embedding options {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        tile = options.pop("tile", None)
        if tile is not None:
            if options.get("tiles") not in (None, tile):
                raise CamaeError(
                    f"tile={tile!r} and tiles={options['tiles']!r} are the same option; give one"
                )
            options["tiles"] = tile
        return replace(base or cls(), **_plain(options))

    def __post_init__(self) -> None:
        super().__post_init__()
        for good, sentence in (*self._vector_checks(), *self._place_checks()):
            if not good:
                raise CamaeError(sentence)

    def _vector_checks(self) -> list[tuple[bool, str]]:
        from camae.model.pooling import POOLS  # here, because it loads torch

        *others, last = map(repr, TILES)
        return [
            (
                self.tiles is None or self.tiles in TILES,
                f"tiles {self.tiles!r} is not {', '.join(others)} or {last}",
            ),
            (0 <= self.overlap < 1, f"overlap {self.overlap} is not a share of a tile in [0, 1)"),
            (
                self.overlap == 0 or self.tiles == "cover",
                f"overlap {self.overlap} is of tiles='cover' alone: give that, or leave it out",
            ),
            (self.pool in POOLS, f"pool {self.pool!r} is not one of {', '.join(POOLS)}"),
            (
                not isinstance(self.layers, str) or self.layers == "best",
                f"layers is {self.layers!r}; give numbers of blocks, or 'best'",
            ),
            (
                not (self.intensity and isinstance(self.layers, tuple) and len(self.layers) > 1),
                "intensity=True goes with the output of one layer, because intensities are the same for all: give one "
                "number in layers",
            ),
            (
                not self.impute or not (self.intensity or self.interpolate or self.bag_of_channels),
                "an imputed channel has no intensities, takes crops of the model's size, and is encoded with the "
                "others: leave out impute, or intensity, tiles='interpolate' and bag_of_channels",
            ),
            (
                len(set(self.impute)) == len(self.impute) and "" not in self.impute,
                f"impute is {self.impute}; give each channel once, by its name",
            ),
            (
                self.value_range is None or self.value_range[0] < self.value_range[1],
                f"value_range {self.value_range} is empty: give the lowest and the highest possible value, in this "
                "order",
            ),
            (
                self.dtype in (None, "float32", "bfloat16"),
                f"dtype {self.dtype} is not float32 or bfloat16",
            ),
            (self.level in ("well", "site"), f"level {self.level!r} is not 'well' or 'site'"),
        ]

    def _place_checks(self) -> list[tuple[bool, str]]:
        with_ray = self.ray_workers != 0
        return [
            (self.sites_per_shard > 0, f"sites_per_shard {self.sites_per_shard} is not above 0"),
            (
                self.tokens_per_pass is None or self.tokens_per_pass > 0,
                f"tokens_per_pass {self.tokens_per_pass} is not above 0",
            ),
            (self.threads is None or self.threads > 0, f"threads {self.threads} is not above 0"),
            (self.ray_workers >= 0, f"ray_workers {self.ray_workers} is not 0 or more"),
            (
                not with_ray or (self.device, self.rank, self.world) == (None, None, None),
                "Ray places its own workers: leave out device, rank and world",
            ),
            (
                not (with_ray and self.rewritten),
                "Ray workers load the model as it is: leave out linear, compile, bag_of_channels and impute",
            ),
            (
                not (with_ray and self.backends),
                "Ray workers take their back-ends from CAMAE_BACKENDS: leave out backends",
            ),
        ]

    def read(self, data: Manifest | str | os.PathLike[str] | None) -> Manifest:
        """The manifest of `data`, or of the index `jump_lite`. Raises CamaeError where both or neither is named."""
        from camae.dataloader.manifest import Manifest

        if isinstance(data, Manifest) or (data is not None and self.jump_lite is None):
            return super().read(data)
        if (data is None) == (self.jump_lite is None):
            raise CamaeError(
                "name the images to embed: DATA, or the site index of JUMP-lite (jump_lite=, --jump-lite), not both"
            )
        return ReadOptions.read(replace(self, format="jump-lite"), str(self.jump_lite))

    @property
    def rewritten(self) -> bool:
        """Whether another form of the model than its own is asked for."""
        return self.linear is not None or self.compile or self.bag_of_channels or bool(self.impute)

    @property
    def interpolate(self) -> bool:
        """Whether images are encoded whole, with positions interpolated to their size."""
        return self.tiles == "interpolate"


def check_base(base: object, kind: type) -> None:
    """Raise CamaeError where the configuration that options change is of another kind."""
    if base is not None and not isinstance(base, kind):
        raise CamaeError(
            f"config is a value of type {type(base).__name__}; give {kind.__name__}, or options by name"
        )


def _plain(options: EmbedOptions) -> dict[str, Any]:
    """Options in the forms that JSON and another process can hold; values of no such form stay as they are."""
    plain = {name: frozen(_number(value)) for name, value in options.items()}
    dtype, device, span = options.get("dtype"), options.get("device"), plain.get("value_range")
    if isinstance(span, tuple) and all(isinstance(_number(value), int | float) for value in span):
        plain["value_range"] = tuple(float(value) for value in span)
    backends = options.get("backends")
    if isinstance(backends, Mapping):
        plain["backends"] = ",".join(f"{setting}={name}" for setting, name in backends.items() if name)
    elif backends is not None:
        plain["backends"] = str(backends)
    if dtype is not None:
        plain["dtype"] = dtype.__name__ if isinstance(dtype, type) else str(dtype).removeprefix("torch.")
    if device is not None:
        plain["device"] = str(device)
    texts = ("z", "time", "variant", "jump_lite")
    plain |= {name: str(plain[name]) for name in texts if plain.get(name) is not None}
    return plain


def _number(value: object) -> object:
    """NumPy's numbers and arrays as Python's."""
    if isinstance(value, type):  # numpy.float32 itself has both, and is no number
        return value
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "dtype") else value
