"""The map of all studies: families as columns, one tile a study, divided by what became of its claims. A click opens the study."""

from __future__ import annotations

import html
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable

import plotly.graph_objects as go
from panels import charts
from panels.store import Standing
from panels.wording import humanised, span

from claimlab import figures
from claimlab.study import FAMILIES, THEMES, Study

ORDER = ("supported", "undecided", "refuted", "not run yet")
SIGNS = {**figures.VERDICT_ICONS, "not run yet": "–"}
COLOURS = {**figures.VERDICT_COLOURS, "not run yet": figures.INK}
OPACITY = {"not run yet": 0.1}
SYMBOLS = dict(zip(THEMES, ("circle", "triangle-up", "square"), strict=True))
FEW = 8  # columns up to which a tile has room for a name of two words
WIDE, SLIM = (128, 17), (74, 10)  # least width of a column in pixels, and letters that fit into it
TALL, FLAT = 50, 36  # height of a row in pixels
EDGE = 0.46  # half a tile, of a column


def show(found: list[Study], standings: dict[str, Standing], passing: Iterable[str]) -> str | None:
    """Draw the map, tiles that do not pass the filters faded; the slug of the study that was clicked, if one was."""
    if not found:
        return None
    places = layout(found)
    columns, rows = _size(places)
    least, letters = WIDE if columns <= FEW else SLIM
    figure = draw(found, places, standings, frozenset(passing), letters)
    height = 96 + rows * (TALL if rows <= 6 else FLAT)
    event = charts.show(figure, key="map", title=sentence(found, standings), height=height, margin=28, least=least * columns,
                        on_select="rerun", alt=f"Map of {len(found)} studies; the cards below link to the same studies")  # fmt: skip
    picked = [point.get("customdata") for point in event.selection.points] if event else []
    known = {s.slug for s in found}
    return next((slug for one in picked if (slug := one[0] if isinstance(one, list) else one) in known), None)


def layout(found: list[Study]) -> dict[str, tuple[int, int]]:
    """Column and row of each study by slug: families in their usual order, in a family by theme and name."""
    families = sorted({s.family for s in found}, key=lambda f: (FAMILIES.index(f) if f in FAMILIES else len(FAMILIES), f))
    filled: Counter[str] = Counter()
    places = {}
    for one in sorted(found, key=lambda s: (bool(s.broken), THEMES.index(s.paper.theme) if not s.broken else 0, s.slug)):
        places[one.slug] = (families.index(one.family), filled[one.family])
        filled[one.family] += 1
    return places


def _size(places: dict[str, tuple[int, int]]) -> tuple[int, int]:
    return 1 + max(x for x, _ in places.values()), 1 + max(y for _, y in places.values())


def counts(study: Study, standing: Standing | None) -> Counter[str]:
    """How many of a study's claims came out how."""
    verdicts = standing.verdicts if standing else {}
    claims = () if study.broken else study.claims
    return Counter(verdicts[c.id]["verdict"] if c.id in verdicts else "not run yet" for c in claims)


def sentence(found: list[Study], standings: dict[str, Standing]) -> str:
    """What the map shows: how many of the judged claims hold, and where most of them do."""
    families: dict[str, Counter[str]] = defaultdict(Counter)
    for one in found:
        families[one.family].update(counts(one, standings.get(one.slug)))
    judged = {name: n.total() - n["not run yet"] for name, n in families.items()}
    if not sum(judged.values()):
        return f"{len(found)} studies, none of them judged yet"
    held = sum(n["supported"] for n in families.values())
    text = f"{held} of {sum(judged.values())} judged claims hold"
    most = max((name for name in families if judged[name] >= 3), key=lambda f: families[f]["supported"] / judged[f], default="")
    if held and most and len(families) > 1:
        text += f", the largest share in {humanised(most)} ({families[most]['supported']} of {judged[most]})"
    return text


def draw(found: list[Study], places: dict[str, tuple[int, int]], standings: dict[str, Standing], passing: frozenset[str],
         letters: int) -> go.Figure:  # fmt: skip
    """The map as a figure; `letters` is how long a name on a tile may be."""
    figure = go.Figure()
    tallies = {one.slug: counts(one, standings.get(one.slug)) for one in found}
    hover = {one.slug: _hover(one, standings.get(one.slug), tallies[one.slug]) for one in found}
    for word in ORDER:
        _segments(figure, word, tallies, places, passing, hover)
    for theme, symbol in SYMBOLS.items():
        _markers(figure, theme, symbol, [s for s in found if not s.broken and s.paper.theme == theme], places, passing, hover)
    shown = [one for one in found if one.slug in passing]
    roomy = letters > SLIM[1]
    figure.add_scatter(
        x=[places[one.slug][0] - EDGE + (0.11 if roomy else 0.14) for one in shown], y=[places[one.slug][1] for one in shown], mode="text",
        text=[f"{html.escape(_name(one, letters))}<br>{_tally(one, tallies[one.slug])}" for one in shown], hoverinfo="skip",
        textposition="middle right", textfont_size=12 if roomy else 10, showlegend=False,
    )  # fmt: skip
    columns, rows = _size(places)
    families = {places[one.slug][0]: humanised(one.family) for one in found}
    figure.update_layout(barmode="overlay", bargap=0, dragmode=False, hovermode="closest", hoverlabel_align="left", margin_b=40,
                         margin_l=4, margin_r=4, legend_itemclick=False, legend_itemdoubleclick=False)  # fmt: skip
    figure.update_xaxes(tickvals=list(range(columns)), ticktext=[families[x] for x in range(columns)], side="top", ticks="",
                        showgrid=False, zeroline=False, automargin=False, range=[-0.5, columns - 0.5], fixedrange=True, tickangle=0,
                        tickfont_size=13 if roomy else 11)  # fmt: skip
    return figure.update_yaxes(visible=False, range=[rows - 0.5, -0.5], fixedrange=True)


def _segments(figure: go.Figure, word: str, tallies: dict[str, Counter[str]], places: dict[str, tuple[int, int]],
              passing: frozenset[str], hover: dict[str, str]) -> None:  # fmt: skip
    """The part of every tile that belongs to one verdict, as wide as its share of the claims."""
    bars: dict[str, list] = {"base": [], "x": [], "y": [], "customdata": [], "hovertext": []}
    opacity = []
    for slug, tally in tallies.items():
        n, total = tally[word], tally.total()
        if not total and word == ORDER[-1]:  # a study without declarations is an empty tile
            n = total = 1
        if n:
            before = sum(tally[w] for w in ORDER[: ORDER.index(word)])
            column, row = places[slug]
            values = (column - EDGE + 2 * EDGE * before / total, 2 * EDGE * n / total, row, slug, hover[slug])
            for name, value in zip(bars, values, strict=True):
                bars[name].append(value)
            opacity.append(OPACITY.get(word, 0.42) if slug in passing else 0.06)
    if bars["x"]:
        figure.add_bar(**bars, orientation="h", width=0.84, name=f"{SIGNS[word]} {word}", hovertemplate="%{hovertext}<extra></extra>",
                       marker={"color": COLOURS[word], "opacity": opacity, "line_width": 0}, unselected_marker_opacity=0.42)  # fmt: skip


def _markers(figure: go.Figure, theme: str, symbol: str, found: list[Study], places: dict[str, tuple[int, int]],
             passing: frozenset[str], hover: dict[str, str]) -> None:  # fmt: skip
    slugs = [s.slug for s in found if s.slug in passing]
    if slugs:
        figure.add_scatter(x=[places[s][0] - EDGE + 0.06 for s in slugs], y=[places[s][1] for s in slugs], mode="markers",
                           marker={"symbol": symbol, "size": 7, "color": figures.INK}, name=theme, customdata=slugs,
                           hovertext=[hover[s] for s in slugs], hovertemplate="%{hovertext}<extra></extra>",
                           unselected_marker_opacity=1)  # fmt: skip


def _name(one: Study, letters: int) -> str:
    names = [one.slug] if one.broken else [one.paper.system, one.slug]
    return next((name for name in names if len(name) <= letters), names[-1][: letters - 1] + "…")


def _tally(one: Study, tally: Counter[str]) -> str:
    if one.broken:
        return "broken"
    judged = tally.total() - tally["not run yet"]
    return " ".join(f"{SIGNS[w]}{tally[w]}" for w in ORDER[:-1] if tally[w]) if judged else "not run yet"


def _hover(one: Study, standing: Standing | None, tally: Counter[str]) -> str:
    """Question, name and verdicts of a tile. Text of a study is data: nothing in it may become markup."""
    if one.broken:
        return f"<b>{html.escape(one.slug)}</b><br>" + "<br>".join(textwrap.wrap(html.escape(f"broken: {one.broken}"), 60))
    question = "<br>".join(html.escape(line) for line in textwrap.wrap(one.paper.question, 60))
    facts = ", ".join(f"{tally[w]} {w}" for w in ORDER if tally[w])
    took = f", takes about {span(standing.seconds)}" if standing and standing.seconds else ""
    where = f"{html.escape(one.paper.system)}, {one.paper.year}, {one.paper.theme}"
    return f"<b>{question}</b><br>{where}<br>{facts}{took}"
