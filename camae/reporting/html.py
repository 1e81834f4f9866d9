"""HTML elements and the page template. Style and images are inline, so a page needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape as escape
from importlib.resources import files


@dataclass(frozen=True)
class Section:
    """Section of the page. `body` is HTML."""

    anchor: str
    title: str
    body: str


def paragraph(text: str, kind: str = "") -> str:
    """Plain text as a paragraph."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def absent(what: str, source: str) -> str:
    """Placeholder for a missing part: what is not shown, and which file it would come from."""
    return f'<p class="absent">Not shown: {escape(what)} (no {escape(source)} in the run folder).</p>'


def figure(content: str, caption: str, kind: str = "") -> str:
    """SVG or `<img>` with a caption."""
    return f'<figure class="{kind}"><div>{content}</div><figcaption>{escape(caption)}</figcaption></figure>'


def pair(left: str, right: str) -> str:
    """Two blocks side by side where the screen is wide enough."""
    return f'<div class="pair"><div>{left}</div><div>{right}</div></div>'


def image(address: str, alt: str) -> str:
    """An inline image with its alternative text."""
    return f'<img src="{address}" alt="{escape(alt, quote=True)}" loading="lazy">'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[int] = ()) -> str:
    """Cells are plain text, broken into lines where the table is wide. numeric: columns set flush right, which are
    broken before an interval in brackets alone.
    """

    def cell(tag: str, position: int, text: str) -> str:
        if position in numeric:
            whole = escape(text).replace(" ", "\u00a0").replace("\u00a0[", " [")
            return f"<{tag} class=number>{whole}</{tag}>"
        shown = escape(text).replace(" ± ", "\u00a0±\u00a0")
        if len(text) > 16 and " " not in text:  # a path or a preset's name; "CA-MAE ViT-B/16" stays whole
            shown = shown.replace("/", "/<wbr>").replace("_", "_<wbr>")
        return f"<{tag}>{shown}</{tag}>"

    head = "".join(cell("th", i, text) for i, text in enumerate(header))
    body = "".join(
        "<tr>" + "".join(cell("td", i, text) for i, text in enumerate(row)) + "</tr>" for row in rows
    )
    rows_html = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{rows_html}</table></div>'


def facts(values: Mapping[str, str]) -> str:
    """Names and values side by side."""
    return (
        "<dl>"
        + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in values.items())
        + "</dl>"
    )


def notebook_facts(title: str, values: Mapping[str, str]) -> str:
    """A title with names and values, for notebooks, which bring their own style."""
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in values.items())
    return f"<div><b>{escape(title)}</b><table><tbody>{rows}</tbody></table></div>"


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Headline numbers: (value, what it is, a smaller remark)."""
    cells = "".join(
        f"<li><b>{escape(value)}</b><span>{escape(what)}</span><small>{escape(remark)}</small></li>"
        for value, what, remark in values
    )
    return f'<ul class="tiles">{cells}</ul>'


def page(title: str, subtitle: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """The whole document. `lead` is HTML that stands under the title."""
    style = files("camae.reporting").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    body = "".join(f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>{s.body}</section>' for s in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>"
        f"<nav>{links}</nav><main>{lead}{body}</main><footer>{escape(footer)}</footer></body></html>\n"
    )
