"""Runs of a study beside each other, and its claim over all of them. ?study=SLUG&claim=ID&runs=A,B&baseline=A&metric=M reopens a view."""

import streamlit as st
from panels import charts, commands, compare, live, picking, response, store, typed
from panels.wording import humanised, plain

with store.guarded():
    whole = {one.slug: one for one in store.studies() if not one.broken}
    ran = [row["study"] for row in store.ledger().runs(limit=500) if row["study"] in whole]

st.title("Compare runs", anchor=False)
if not ran:
    st.info("No study has been run here yet. Run one with a few settings of its knobs; then its runs can be compared.",
            icon=":material/compare_arrows:")  # fmt: skip
    st.page_link("app_pages/catalogue.py", label="Choose a study", icon=":material/search:")
    st.stop()

one, other = st.columns(2)
slugs = sorted({*ran, *([st.query_params["study"]] if st.query_params.get("study") in whole else [])})
usual = ran[0]
slug = picking.choice("Study", "study", slugs, usual=usual, scope="any", place=one)
st.query_params["study"] = slug
study = whole[slug]
claims = {claim.id: claim for claim in study.claims}
name = picking.choice("Claim", "claim", list(claims), usual=study.claims[0].id, scope=slug, place=other, format_func=humanised)
claim = claims[name]
st.caption(plain(claim.text))

with store.guarded():
    rows = picking.gathered(study)
if not rows:
    picking.empty(study)
    st.stop()
known = {row["id"]: row for row in rows}
wanted = [run for run in st.query_params.get("runs", "").split(",") if run in known] or picking.first(study, rows, claim)
pinned = st.query_params.get("baseline", "")
pinned = pinned if pinned in wanted else picking.baseline_of(study, [known[run] for run in wanted])
chosen = picking.table(study, rows, claim, wanted, pinned)
st.query_params["runs"] = ",".join(chosen)
if len(chosen) > picking.AT_MOST:
    st.caption(f"The first {picking.AT_MOST} of {len(chosen)} ticked runs are compared.")
picked = [known[run] for run in chosen[: picking.AT_MOST]]

if not picked:
    st.info("Tick runs in the table to lay their curves over each other.", icon=":material/check_box:")
else:
    labels = picking.labels(picked)
    paper = picking.baseline_of(study, picked)
    with store.guarded():
        points = compare.tables(picked)
    metrics = live.ordered(study, list(dict.fromkeys(m for table in points.values() for m in charts.curves(table))))
    metrics = metrics or list(dict.fromkeys(m for table in points.values() for m in table["metric"].unique()))
    left, right = st.columns(2)
    baseline = picking.choice("Baseline run", "baseline", list(labels), usual=paper, scope="-".join(sorted(labels)), place=left,
                              format_func=labels.get)  # fmt: skip
    picked.sort(key=lambda row: row["id"] != baseline)
    st.header("What differs", anchor="differs")
    compare.what_differs(picked, labels | {baseline: f"{labels[baseline]} (baseline)"})
    if not metrics:
        st.caption("These runs have recorded no points yet.")
    else:
        metric = picking.choice("Metric", "metric", metrics, usual=metrics[0], scope=slug, place=right, format_func=humanised)
        there = list(
            dict.fromkeys(arm for table in points.values() for arm in table.loc[table["metric"] == metric, "arm"].unique())
        )
        usual_arms = [arm for arm in (claim.arm, claim.baseline) if arm in there] or there[:1]
        arms = st.pills(
            "Arms", there, selection_mode="multi", default=usual_arms, key=f"compare-arms-{slug}-{claim.id}-{metric}", wrap=True
        )
        st.header("Curves", anchor="curves")
        compare.overlay(picked, points, metric, arms, labels, baseline)
        st.header(
            "Paired differences", anchor="paired", help="Each seed of a run minus the same seed of the baseline run, at the end."
        )
        if len(picked) > 1:
            compare.paired_plot(picked, points, metric, arms, labels, baseline)
        else:
            st.caption("Tick a second run to see its difference from the baseline run.")

st.header("The claim over all settings", anchor="settings")
usable = response.usable(rows, claim)
if not usable:
    st.info("No run of this study has been judged with an effect yet; a run that ends by itself is.", icon=":material/balance:")
    st.stop()
st.markdown(f"**{response.share(usable, claim)}**; {response.summary(usable, claim)}. Negative controls are left out.")
response.parallel(study, usable, claim)
turned = {knob.name: knob for knob in response.varying(study, usable)}
if turned:
    first, second, third = st.columns(3, vertical_alignment="bottom")
    across = turned[picking.choice("Knob", "knob", list(turned), usual=next(iter(turned)), scope=f"{slug}-{len(turned)}", place=first,
                                   format_func=humanised)]  # fmt: skip
    others = [knob for knob in turned if knob != across.name]
    up = picking.choice("Second knob, for the heat map", "knob2", others, usual=others[0], scope=f"{slug}-{across.name}", place=second,
                        format_func=humanised) if others else None  # fmt: skip
    fixed = bool(picked) and third.toggle("Other knobs as in the baseline run", key="compare-fixed",
                                          help="off: every judged run, whatever its other knobs")  # fmt: skip
    base = known[baseline] if picked else usable[0]
    response.response(study, response.alike(usable, base, [across.name]) or usable if fixed else usable, claim, across)
    if up:
        response.heat(response.alike(usable, base, [across.name, up]) or usable if fixed else usable, claim, across, turned[up])

with st.expander("Copy the commands", icon=":material/terminal:"):
    same = [commands.run(study, row["params"], row["profile"], row["control"]) for row in picked]
    typed.show([f"claimlab runs --study {slug}", *same])
