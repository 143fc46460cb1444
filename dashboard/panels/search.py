"""Search and filters of the catalogue. Their state lives in the URL; an empty result says which filter emptied it, a result
where the search matched."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

import streamlit as st
from panels.store import Standing
from panels.wording import humanised, plain

from claimlab.study import THEMES, Study

ANY = "All"
WORDS = ("supported", "refuted", "undecided", "not run yet", "broken")
MINUTES = ("1", "2", "5", "10", "20")
AROUND = 45  # letters of context on both sides of a match


@dataclass(frozen=True)
class Filters:
    """What the reader asked for; the field names are the names in the URL."""

    q: str = ""
    theme: str = ANY
    family: str = ANY
    verdict: str = ANY
    minutes: str = ANY

    def described(self, name: str) -> str:
        """One filter in words."""
        if name == "q":
            return f"the search for '{self.q}'"
        return f"the limit of {self.minutes} min" if name == "minutes" else f"the {name} '{getattr(self, name)}'"


def bar(found: list[Study]) -> Filters:
    """Draw the search field and the filters."""
    families = sorted({s.family for s in found})
    wide, rest = st.columns([1, 2])
    words = wide.text_input("Search", key="q", bind="query-params", placeholder="question, claim, method, author", type="search")
    offered = (("Theme", THEMES), ("Family", families), ("Verdict", WORDS), ("Minutes", MINUTES))
    boxes = rest.grid(len(offered), min_column_width=130)
    chosen = [
        boxes.selectbox("Minutes at most" if label == "Minutes" else label, [ANY, *options], key=label.lower(),
                         bind="query-params", format_func=humanised if label == "Family" else str,
                         help="by past runs at the default profile on this machine" if label == "Minutes" else None)
        for label, options in offered
    ]  # fmt: skip
    return Filters((words or "").strip(), *chosen)


def matching(found: list[Study], standings: dict[str, Standing], filters: Filters) -> list[Study]:
    """The studies that pass every filter; those whose question matches the search first, then by title, claim and so on."""
    passing = [s for s in found if all(passes(s, standings.get(s.slug), filters, f.name) for f in fields(Filters))]
    return sorted(passing, key=lambda s: rank(s, filters.q)) if filters.q else passing


def passes(study: Study, standing: Standing | None, filters: Filters, name: str) -> bool:
    """Whether a study passes one filter. Of a broken study only slug, family and that it is broken are known."""
    wanted = getattr(filters, name)
    if name == "q":
        text = " ".join(place.held for place in places(study))
        return all(word in text for word in wanted.casefold().split())
    if wanted == ANY:
        return True
    if name == "family":
        return study.family == wanted
    if study.broken:
        return name == "verdict" and wanted == "broken"
    if name == "minutes":
        return standing is not None and standing.seconds is not None and standing.seconds <= 60 * float(wanted)
    if name == "theme":
        return study.paper.theme == wanted
    verdicts = standing.verdicts if standing else {}
    shown = {verdicts[c.id]["verdict"] if c.id in verdicts else "not run yet" for c in study.claims}
    return wanted in shown


@dataclass(frozen=True)
class Place:
    """Where a search can match: what the place is called, its text, and names of it that one may search for as well."""

    name: str
    text: str
    names: str = ""

    @property
    def held(self) -> str:
        return f"{self.name} {self.text} {self.names}".casefold()


def places(study: Study) -> list[Place]:
    """Everything that the search reads, the weightiest first."""
    name = Place("name", f"{study.slug} {humanised(study.slug)} {study.family}")
    if study.broken:
        return [name, Place("reason", study.broken)]
    paper = study.paper
    found = [Place("question", paper.question), Place("title", f"{paper.title} ({paper.year})"), Place("system", paper.system),
             name, Place("author", paper.authors), Place("theme", paper.theme)]  # fmt: skip
    for one in study.claims:
        names = f"{one.id} {one.metric} {humanised(one.metric)} {one.arm} {one.baseline or ''}"
        found.append(Place(f"claim {humanised(one.id)}", one.text, names))
    found.append(Place("method", " ".join(study.declared.get("doc", "").split())))
    return found + [Place(f"knob {humanised(one.name)}", one.help, one.name) for one in study.knobs]


def rank(study: Study, query: str) -> int:
    """Where the first place stands that holds most of the searched words: 0 is the question."""
    words = query.casefold().split()
    held = [sum(word in place.held for word in words) for place in places(study)]
    return held.index(max(held))


def where(study: Study, query: str) -> list[tuple[str, str]]:
    """The places that the searched words were found in, no more than it takes to hold them all, each with its text around the
    first match; question, name and system of a study are in sight anyway and not told."""
    missing = query.casefold().split()
    told = []
    for place in places(study):
        new = [word for word in missing if word in place.held]
        missing = [word for word in missing if word not in new]
        if new and place.name not in ("question", "name", "system"):
            told.append((place.name, around(place.text, new)))
    return told


def around(text: str, words: list[str]) -> str:
    """The text around the first of the words as Markdown, with the words in bold."""
    first = min((at for word in words if (at := text.casefold().find(word)) >= 0), default=0)
    start, end = max(0, first - AROUND), min(len(text), first + AROUND + len(words[0]))
    start = text.rfind(" ", 0, start + 1) + 1 if start else 0
    end = after if (after := text.find(" ", end)) > 0 else len(text)
    pieces = re.split(f"({'|'.join(map(re.escape, words))})", text[start:end], flags=re.IGNORECASE)
    marked = "".join(f"**{plain(piece)}**" if place % 2 else plain(piece) for place, piece in enumerate(pieces))
    return ("… " if start else "") + marked + (" …" if end < len(text) else "")


def culprits(found: list[Study], standings: dict[str, Standing], filters: Filters) -> list[tuple[str, int]]:
    """The filters whose removal alone brings studies back, with how many."""
    result = []
    for field in fields(Filters):
        if getattr(filters, field.name) != field.default:
            count = len(matching(found, standings, replace(filters, **{field.name: field.default})))
            if count:
                result.append((field.name, count))
    return result


def explain(found: list[Study], standings: dict[str, Standing], filters: Filters) -> None:
    """Say which filter left nothing, and offer the way back."""
    if not found:
        st.info("There is no study in this lab yet. `claimlab new NAME --family FAMILY` writes one.", title="Nothing here yet")
        return
    blame = [
        f"Without {filters.described(name)} there {'is' if n == 1 else 'are'} {n}."
        for name, n in culprits(found, standings, filters)
    ]
    if not blame:
        alone = [f.name for f in fields(Filters) if not any(passes(s, standings.get(s.slug), filters, f.name) for s in found)]
        named = " and ".join(filters.described(name) for name in alone)
        blame = [f"Nothing passes {named}, whatever the others say." if named else "Only together do the filters leave nothing."]
    untimed = sum(1 for s in found if not s.broken and standings[s.slug].seconds is None)
    if filters.minutes != ANY and untimed:
        blame.append(f"How long a study takes is known once it has run at the default profile: {untimed} have not yet.")
    st.info(plain(" ".join(blame)), title="No study passes all filters", icon=":material/filter_alt_off:")
    st.button("Clear all filters", icon=":material/filter_alt_off:", on_click=_clear, key="clear_filters")


def _clear() -> None:
    for field in fields(Filters):
        st.session_state[field.name] = field.default
