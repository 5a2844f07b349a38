"""The look of every page this repository writes: its frame, styles, charts and how text and data get into HTML.

A page needs no network. Its charts are Plotly's, whose JavaScript comes from the installed package; their colours come
from style.css, so that they follow the reader's choice of light or dark.
"""
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PLOTLY = 'plotly.min.js'

Figure = dict[str, Any]  # {'data': [...], 'layout': {...}}, as Plotly's JSON


@dataclass(frozen=True)
class Chart:
    """A card with a chart.

    name: unique on the page, [a-z_]. title, note: text, note may be ''. figure: see inference.report.figures.
    height: pixels. spoken: what a reader who does not see the chart is told. table: rows of texts, the first one the
    header; the same numbers for those who would rather read them. wide: as wide as the page.
    """
    name: str
    title: str
    note: str
    figure: Figure
    height: int
    spoken: str
    table: Sequence[Sequence[str]] = ()
    wide: bool = False

    def html(self) -> str:
        table = (f'<details><summary>The numbers</summary><div class="scroll">{html_table(self.table)}</div></details>'
                 if self.table else '')
        note = f'<p class="soft">{text(self.note)}</p>' if self.note else ''
        return (f'<figure class="card chart{" wide" if self.wide else ""}"><figcaption><h3>{text(self.title)}</h3>'
                f'{note}</figcaption><div class="plot" id="chart-{self.name}" data-figure="{self.name}" role="img" '
                f'aria-label="{text(self.spoken)}" style="height:{self.height}px"></div>{table}</figure>')


def printable(value: object) -> str:
    """The text as a single line that can be encoded, even for odd file names."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in str(value))


def text(value: object) -> str:
    """Any value as HTML text or as a quoted attribute."""
    return escape(printable(value))


def percent(share: float | None, digits: int = 2) -> str:
    """'81.25 %', or a dash where undefined."""
    return '–' if share is None or share != share else f'{100 * share:.{digits}f} %'


def html_table(rows: Sequence[Sequence[str]], left: Iterable[int] = (0,), marked: str = '') -> str:
    """A table of texts, the first row its header; columns `left` aligned to the left.

    marked: a column that is shown as wrong where it is not 0.
    """
    header, *body = rows
    left = set(left)

    def row(cells: Sequence[str], tag: str) -> str:
        def kind(column: int, value: str) -> str:
            if header[column] == marked and value not in ('0', marked):
                return ' class="wrong"'
            return ' class="left"' if column in left else ''
        return '<tr>' + ''.join(f'<{tag}{kind(i, value)}>{text(value)}</{tag}>'
                                for i, value in enumerate(cells)) + '</tr>'
    return (f'<table><thead>{row(header, "th")}</thead><tbody>{"".join(row(cells, "td") for cells in body)}'
            '</tbody></table>')


def tiles(values: Iterable[tuple[str, str, str]]) -> str:
    """The headline figures: (name, value, note) each."""
    items = ''.join(f'<div class="card tile"><dt>{text(name)}</dt><dd>{text(value)}</dd>'
                    f'<dd class="soft">{text(note)}</dd></div>' for name, value, note in values)
    return f'<dl class="tiles">{items}</dl>'


def swatches(names: Sequence[str], colors: Sequence[Sequence[int]]) -> str:
    """The legend of the classes."""
    items = ''.join(f'<li><i style="background:rgb{tuple(map(int, color))}"></i>{text(name)}</li>'
                    for name, color in zip(names, colors))
    return f'<ul class="legend">{items}</ul>'


def section(name: str, title: str, content: str, note: str = '') -> str:
    """A part of the page that its menu can lead to."""
    note = f'<p class="soft">{text(note)}</p>' if note else ''
    return f'<section id="{name}"><h2>{text(title)}</h2>{note}{content}</section>'


def charts(items: Sequence[Chart]) -> str:
    return f'<div class="grid">{"".join(chart.html() for chart in items)}</div>'


def data_script(name: str, value: object) -> str:
    """JSON that page.js reads; `<` is escaped, so that no text in it can end the script or begin a comment."""
    content = json.dumps(value, separators=(',', ':'), ensure_ascii=True, allow_nan=False).replace('<', '\\u003c')
    return f'<script type="application/json" id="{name}">{content}</script>'


def plotly() -> str:
    """Plotly's JavaScript, from the installed package."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def script(name: str) -> str:
    """One of our own scripts, inline."""
    return f'<script>\n{(HERE / name).read_text(encoding="utf-8")}</script>'


def page(title: str, menu: Mapping[str, str], body: str, figures: Mapping[str, Figure], last: str = '',
         inline: bool = False, styles: Sequence[str] = ('style.css',)) -> str:
    """A whole page.

    menu: {id of a section: its name}. body: HTML of <main>. figures: those of its charts, by name. last: HTML behind
    it, such as further scripts. inline: Plotly's script is part of the page (5 MB); otherwise the file plotly.min.js
    lies beside it, and is read after the page is on the screen. styles: our files.
    """
    links = ''.join(f'<a href="#{name}">{text(words)}</a>' for name, words in menu.items())
    style = '\n'.join((HERE / name).read_text(encoding='utf-8') for name in styles)
    load = '' if not figures else f'<script>{plotly()}</script>' if inline else \
        f'<script defer src="{PLOTLY}"></script>'
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
            f'<title>{text(title)}</title>\n<style>{style}</style></head>\n'
            f'<body><a class="skip" href="#main">Skip to the content</a><header class="top"><div><strong>{text(title)}'
            f'</strong><nav aria-label="Sections">{links}</nav><button id="theme" type="button">Theme: system</button>'
            f'</div></header>\n<main id="main">\n{body}\n</main>\n'
            f'{data_script("figures", dict(figures))}\n{script("page.js")}\n{last}\n{load}\n</body></html>\n')
