"""Search and filters of the catalogue. Their state lives in the URL; an empty result says which filter emptied it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import streamlit as st
from panels.store import Standing
from panels.wording import plain

from claimlab.study import THEMES, Study

ANY = "All"
WORDS = ("supported", "refuted", "undecided", "not run yet", "broken")


@dataclass(frozen=True)
class Filters:
    """What the reader asked for; the field names are the names in the URL."""

    q: str = ""
    theme: str = ANY
    family: str = ANY
    verdict: str = ANY

    def described(self, name: str) -> str:
        """One filter in words."""
        return f"the search for '{self.q}'" if name == "q" else f"the {name} '{getattr(self, name)}'"


def bar(found: list[Study]) -> Filters:
    """Draw the search field and the filters."""
    families = sorted({s.family for s in found})
    wide, *rest = st.columns([4, 2, 2, 2])
    words = wide.text_input("Search", key="q", bind="query-params", placeholder="question, claim, method, author", type="search")
    chosen = [
        column.selectbox(label, [ANY, *options], key=label.lower(), bind="query-params")
        for column, label, options in zip(rest, ("Theme", "Family", "Verdict"), (THEMES, families, WORDS), strict=True)
    ]
    return Filters((words or "").strip(), *chosen)


def matching(found: list[Study], standings: dict[str, Standing], filters: Filters) -> list[Study]:
    """The studies that pass every filter."""
    return [s for s in found if all(passes(s, standings.get(s.slug), filters, f.name) for f in fields(Filters))]


def passes(study: Study, standing: Standing | None, filters: Filters, name: str) -> bool:
    """Whether a study passes one filter. Of a broken study only slug, family and that it is broken are known."""
    wanted = getattr(filters, name)
    if name == "q":
        text = haystack(study)
        return all(word in text for word in wanted.casefold().split())
    if wanted == ANY:
        return True
    if name == "family":
        return study.family == wanted
    if study.broken:
        return name == "verdict" and wanted == "broken"
    if name == "theme":
        return study.paper.theme == wanted
    verdicts = standing.verdicts if standing else {}
    shown = {verdicts[c.id]["verdict"] if c.id in verdicts else "not run yet" for c in study.claims}
    return wanted in shown


def haystack(study: Study) -> str:
    """Everything that the search reads: question, claims, methods, authors, title, names, knobs."""
    parts = [study.slug, study.slug.replace("-", " "), study.family, study.broken]
    if not study.broken:
        paper = study.paper
        parts += [
            paper.question,
            paper.title,
            paper.authors,
            str(paper.year),
            paper.system,
            paper.theme,
            study.declared.get("doc", ""),
        ]
        parts += [f"{c.id} {c.text} {c.metric} {c.arm} {c.baseline or ''}" for c in study.claims]
        parts += [f"{k.name} {k.help}" for k in study.knobs]
    return " ".join(parts).casefold()


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
    st.info(plain(" ".join(blame)), title="No study passes all filters", icon=":material/filter_alt_off:")
    st.button("Clear all filters", icon=":material/filter_alt_off:", on_click=_clear, key="clear_filters")


def _clear() -> None:
    for field in fields(Filters):
        st.session_state[field.name] = field.default
