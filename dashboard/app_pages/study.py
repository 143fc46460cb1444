"""One study: its question, knobs, running curves, verdicts, figures, past runs and source. ?study=SLUG&run=ID reopens a view,
?study=SLUG&p.KNOB=VALUE a setting, ?expect=NUMBER what the reader expects."""

import streamlit as st
from panels import address, commands, history, knobs, launch, live, midrun, predict, source, store, trial, verdicts
from panels.wording import ago, humanised, plain

from claimlab import params, study
from claimlab.ledger import LedgerError

slug = st.query_params.get("study", "")
if not slug:
    st.title("Choose a study")
    for one in (s for s in store.studies() if not s.broken):
        st.page_link(
            "app_pages/study.py", label=plain(one.paper.question), icon=":material/experiment:", query_params={"study": one.slug}
        )
    st.stop()
try:
    chosen = study.find(slug)
except study.StudyError as error:
    st.error(plain(error), title="This study cannot be shown", icon=":material/link_off:")
    st.page_link("app_pages/catalogue.py", label="Back to the catalogue", icon=":material/arrow_back:")
    st.stop()

run, trouble = None, ""
with store.guarded():
    standing = store.standings([chosen])[chosen.slug]
    if wanted := st.query_params.get("run"):
        try:
            run = store.ledger().run(wanted)
            if run["study"] != chosen.slug:
                run, trouble = None, f"the run {wanted} belongs to another study, {run['study']}"
        except LedgerError as error:
            trouble = str(error)
    else:
        going = [row for row in store.alive() if row["study"] == chosen.slug]
        run = going[0] if going else standing.run

with st.sidebar:
    request = knobs.form(chosen, run)
    if run:
        midrun.offer(chosen, run)
    if request is not None:
        try:
            with store.guarded():
                started = launch.start(chosen, request, store.ledger())
        except params.KnobError as error:
            st.error(plain(error), title="Nothing was started", icon=":material/tune:")
        else:
            predict.begun(started)
            address.go(chosen, started)
            st.rerun()

paper = chosen.paper
st.title(plain(paper.question), anchor=False)
with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
    st.markdown(
        f"[{plain(paper.title)}]({paper.url}), {plain(paper.authors)}, {paper.year} · {paper.theme} · {humanised(chosen.family)}",
        width="content",
    )
    with st.container(horizontal=True, width="content"):
        with st.popover("Open in JupyterLab", icon=":material/menu_book:", key="jupyter", on_change="rerun") as books:
            if books.open:
                commands.jupyter(chosen, history.executed(run))
        with st.popover("Copy the command", icon=":material/terminal:", key="commands", on_change="rerun") as lines:
            if lines.open:
                commands.panel(chosen, run)

asked, expected, waiting = predict.asked(chosen), None, False
if asked is not None:
    most = predict.limit(chosen, asked, [standing.verdicts[asked.id]["effect"]] if asked.id in standing.verdicts else [])
    expected = predict.expected(chosen, most)
    waiting = predict.waits(chosen, run, expected)
    predict.panel(chosen, asked, most, expected, folded=bool(run or standing.verdicts) and not waiting)

if trouble:
    st.error(plain(trouble), title="This run cannot be shown", icon=":material/link_off:")
if run:
    with st.container(key="curves"):  # live views stand beside the curves, on a phone below them
        live.panel(chosen, run["id"])
else:
    st.info(
        "Set the knobs in the panel at the left (on a phone it opens at the top left) and press Run. The curves of all arms "
        "and seeds grow here, and the claims below are judged when the run has ended.",
        title="No run yet",
        icon=":material/play_arrow:",
    )

with store.guarded():
    if run:
        judged = {v["claim"]: v for v in store.ledger().verdicts(run["id"]) if not v["control"]}
        control, _ = ({}, None) if run["control"] else store.under_control(chosen, run)
        note = f"Run {run['id']}, started {ago(run['started'])}, {run['profile']} profile, n = {len(run['seeds'])} seeds."
        if run["control"]:
            note += " This is the negative control: where a claim is marked so, it must not come out supported here."
    else:
        judged, control = standing.verdicts, standing.control
        note = "Reference results that come with the project." if standing.reference else "Nothing has been judged yet."
hidden = waiting and bool(judged)
if hidden:
    verdicts.wait(chosen)
else:
    verdicts.board(chosen, judged, control, note=note, expected=expected)

names = ("Figures", "How it works", "Past runs", "Files", "What the scale hides", *(["Try it yourself"] if chosen.trials else []))
drawings, method, past_runs, files, scale, *own = st.tabs(names, key=f"{chosen.slug}-tab", on_change="rerun")
with store.guarded():
    if drawings.open:
        with drawings:
            if hidden:
                st.caption("The figures show the outcome too: they wait for what you expect.")
            else:
                history.figures(run["id"] if run else "")
    if method.open:
        with method:
            st.markdown(plain(source.idea(chosen)))
            for path in source.files(chosen):
                with st.expander(f"Source of {path.name}", expanded=path == chosen.path):
                    st.code(path.read_text(encoding="utf-8"), language="python", line_numbers=True, height=560)
    if past_runs.open:
        with past_runs:
            picked = history.runs(chosen, run["id"] if run else None)
            if picked and picked != (run or {}).get("id"):
                address.go(chosen, picked)
                st.rerun()
    if files.open:
        with files:
            history.downloads(chosen, run)
    if scale.open:
        with scale:
            st.markdown(plain(chosen.honesty) or "The study does not say.")
    if own and own[0].open:
        with own[0]:
            trial.panel(chosen, run)
