"""Command-line options made from the fields of a configuration: same names, defaults and texts as in Python."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from camae.embedding.config import ReadOptions
from camae.errors import CamaeError

if TYPE_CHECKING:
    from camae.maps.distances import Distance
    from camae.maps.nulls import Null

DATA_HELP = "manifest (CSV, Parquet) or image folder"
Data = Annotated[str, typer.Argument(help=DATA_HELP)]
Reader = Annotated[
    str | None,
    typer.Option(help="image back-end: 'native' (default: 8 and 16 bit), 'tifffile' (also float) or 'dali'"),
]
Profiles = Annotated[
    list[str],
    typer.Argument(
        help="profiles (CSV, TSV, Parquet, AnnData); several files are one screen where their plates differ, else a "
        "model each; name=file says which model a file is of"
    ),
]
Perturbation = Annotated[str, typer.Option(help="column of perturbations")]
Plate = Annotated[str, typer.Option(help="column of plates, the batches")]
Control = Annotated[str, typer.Option(help="column that marks controls")]
Negative = Annotated[str, typer.Option(help="its value for negative controls")]
Unit = Annotated[
    str, typer.Option(help="replicates: 'well' (sites are averaged) or 'site' (each site counts as one)")
]
Method = Annotated[
    str,
    typer.Option(
        help="alignment: none, center, standardize, pca, pca_standardize, tvn, tvn_ando, tvn_shrunk (few controls), "
        "replicate_whitening, spherize or robustize_mad"
    ),
]
Features = Annotated[
    str, typer.Option(help="'known' (columns that are features of a known tool) or 'all' columns of numbers")
]
ShrinkageOption = Annotated[
    str | None,
    typer.Option(
        "--shrinkage",
        help="strength of tvn_shrunk and replicate_whitening: 'ledoit_wolf' or a number above 0, up to 1 "
        "[default: ledoit_wolf]",
    ),
]
Components = Annotated[
    str,
    typer.Option(
        help="principal components that an alignment keeps: 'half_controls' (at most half as many as controls), 'all' "
        "or a number"
    ),
]
NullDistribution = Annotated[
    str,
    typer.Option(
        "--null",
        help="null of average precision: 'auto' (exact where that can be computed, else permutations until a "
        "false-discovery rate can be decided) or 'permutation' (--null-size of them)",
    ),
]
NullSize = Annotated[int, typer.Option(help="random rankings of a null that is not exact, at the fewest")]
RankingDistance = Annotated[
    str, typer.Option("--distance", help="profiles are ranked by: 'cosine', 'correlation' or 'euclidean'")
]
Threshold = Annotated[float, typer.Option(help="false-discovery rate of retrieval and activity")]
Permutations = Annotated[int, typer.Option(help="permutations of activity and calibration, at the fewest")]
Backend = Annotated[
    str,
    typer.Option(
        help="library of the arrays: 'numpy', 'cupy', or 'auto': CuPy where it is installed and a GPU is there"
    ),
]
# Names that an option goes by besides its field's, or instead of it where it is given again for more.
_ALIASES = {"tiles": ("--tile",)}
_SINGULAR = {"negative_controls": "--negative-control"}
# Options of several texts that may also stand in one, between commas.
_LISTS = {"channels", "impute"}


def with_options(
    config: type[ReadOptions], **defaults: object
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: gives a command that takes `**options` one option for every field of `config`.

    defaults: those that differ from the field's. No configuration is made, because its checks load torch.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        types = get_type_hints(config)
        own = [
            p
            for p in inspect.signature(command, eval_str=True).parameters.values()
            if p.kind != p.VAR_KEYWORD
        ]
        reading = {f.name for f in fields(ReadOptions)}  # last in the help
        ordered = sorted(fields(config), key=lambda f: f.name in reading)
        made = [_parameter(f, types[f.name], defaults.get(f.name, f.default)) for f in ordered]

        several = {f.name for f in fields(config) if f.default == ()}
        numbers = {f.name for f in fields(config) if {str, tuple[int, ...]} <= set(get_args(types[f.name]))}

        @functools.wraps(command)
        def run(**given: object) -> None:
            values = {n: _texts(n, v) if n in several else v for n, v in given.items()}
            command(**{n: _numbers(n, v) if n in numbers else v for n, v in values.items()})

        setattr(run, "__signature__", inspect.Signature([*own, *made]))  # noqa: B010 - what typer reads
        run.__annotations__ = {p.name: p.annotation for p in (*own, *made)}
        return run

    return decorate


def _texts(name: str, given: object) -> tuple[str, ...]:
    """Values of an option that may be given several times."""
    values = cast("list[str]", given) or ()
    if name not in _LISTS:
        return tuple(values)
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def _numbers(name: str, given: object) -> str | tuple[int, ...] | None:
    """Values of an option of numbers that may also be one word. Raises CamaeError for a word among numbers."""
    values = cast("list[str]", given) or []
    if len(values) == 1 and not _is_integer(values[0]):
        return values[0]
    if words := [value for value in values if not _is_integer(value)]:
        raise CamaeError(f"--{name} {words[0]}: give one word alone, or numbers")
    return tuple(int(value) for value in values) or None


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def parse_unit(text: str) -> Literal["well", "site"]:
    """Unit of replication. Raises CamaeError for another word."""
    if text in ("well", "site"):
        return "well" if text == "well" else "site"
    raise CamaeError(f"--unit {text}: choose 'well' or 'site'")


def parse_distance(text: str) -> Distance:
    """Distance that profiles are ranked by. Raises CamaeError for another word."""
    from camae.maps.distances import DISTANCES

    for name in DISTANCES:
        if name == text:
            return name
    raise CamaeError(f"--distance {text}: choose one of {', '.join(DISTANCES)}")


def parse_null(text: str) -> Null:
    """Null distribution of average precision. Raises CamaeError for another word."""
    from camae.maps.nulls import NULLS

    for name in NULLS:
        if name == text:
            return name
    raise CamaeError(f"--null {text}: choose one of {', '.join(NULLS)}")


def parse_features(text: str) -> Literal["known", "all"]:
    """Which columns are features. Raises CamaeError for another word."""
    if text in ("known", "all"):
        return "known" if text == "known" else "all"
    raise CamaeError(f"--features {text}: choose 'known' or 'all'")


def parse_shrinkage(text: str | None) -> Literal["ledoit_wolf"] | float | None:
    """Strength of a shrunk covariance. Raises CamaeError for another word; the alignment checks the number."""
    if text is None or text == "ledoit_wolf":
        return None if text is None else "ledoit_wolf"
    try:
        return float(text)
    except ValueError:
        raise CamaeError(f"--shrinkage {text}: give 'ledoit_wolf' or a number above 0, up to 1") from None


def parse_components(text: str) -> Literal["half_controls"] | int | None:
    """Components of an alignment. Raises CamaeError for what is neither a word of it nor a number above 0."""
    if text == "half_controls":
        return "half_controls"
    if text == "all":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise CamaeError(f"--components {text}: give 'half_controls', 'all' or a number above 0")


class PairCommand(TyperCommand):
    """Command whose options of two numbers may be written `0 1` or `0,1`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        pairs = {name for p in self.params if p.nargs == 2 for name in p.opts}
        plain: list[str] = []
        for word in args:
            name, equals, value = word.partition("=")
            if equals and name in pairs:
                plain += [name, *value.split(",")]
            elif plain and plain[-1] in pairs:
                plain += word.split(",")
            else:
                plain.append(word)
        return super().parse_args(ctx, plain)


class ManyCommand(TyperCommand):
    """Command of any number of first arguments and one last, which takes the only word where one is given."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        given = bool(args)  # the parser takes words out of it
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            several, last = self.params[:2]
            if given and error.param is several:
                raise CamaeError(
                    f"{several.name} and {last.name} are needed, in this order, and one argument is given"
                ) from None
            raise


def _parameter(field: Field[object], kind: object, default: object) -> inspect.Parameter:
    """The command's parameter for a field: flags for bool, a repeated option for several numbers."""
    flag = _SINGULAR.get(field.name, "--" + field.name.replace("_", "-"))
    other = kind is bool or field.name in _ALIASES or field.name in _SINGULAR
    names = [flag, *_ALIASES.get(field.name, ())] if other else []
    if tuple[int, ...] in get_args(kind):  # numbers, or a word that stands for one
        kind = list[str] | None if str in get_args(kind) else list[int] | None
    if get_args(kind) == (str, ...):
        kind, default = list[str] | None, None
    option = typer.Option(*names, help=field.metadata["help"], show_default=default not in (None, False))
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )
