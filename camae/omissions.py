"""Record of what a command left out: files, sites, planes, wells, features, genes, pairs, each with its reason."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from camae.files import write_text

FILE_NAME = "left_out.csv"


@dataclass(frozen=True)
class Omission:
    """One thing that was left out.

    kind: "file", "site", "plane", "well", "feature", "gene" or "pair". item: which one. reason: why, a clause that
    is the same for all that were left out for it.
    """

    kind: str
    item: str
    reason: str


@dataclass
class Omissions:
    """Everything a reader or command left out, in the order it was met."""

    found: list[Omission] = field(default_factory=list)

    def add(self, kind: str, item: object, reason: str) -> None:
        """Note one thing."""
        self.found.append(Omission(kind, str(item), reason))

    def extend(self, other: Omissions) -> None:
        """Note what another record holds."""
        self.found += other.found

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Omission]:
        return iter(self.found)

    def lines(self) -> list[str]:
        """One line for each kind and reason: "4 files left out: no naming scheme fits (first: P1_A1_s1_DNA.tif)"."""
        counts = Counter((o.kind, o.reason) for o in self.found)
        first = {(o.kind, o.reason): o.item for o in reversed(self.found)}
        return [
            f"{count:,} {kind if count == 1 else kind + 's'} left out: {reason} (first: {first[kind, reason]})"
            for (kind, reason), count in counts.items()
        ]

    def write(self, folder: str | Path, name: str = FILE_NAME) -> Path | None:
        """The list as a CSV file (kind, item, reason) in `folder`; nothing, and no old list, where it is empty."""
        path = Path(folder) / name
        if not self.found:
            path.unlink(missing_ok=True)
            return None
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("kind", "item", "reason"))
        writer.writerows((o.kind, o.item, o.reason) for o in self.found)
        return write_text(path, text.getvalue())
