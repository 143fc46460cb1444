"""Figures dressed for a page against plotly's own way of changing a figure."""

import json

import plotly.graph_objects as go
import pytest
from panels import charts
from plotly.subplots import make_subplots

from claimlab import figures


def single():
    return go.Figure(go.Scatter(x=[1, 2], y=[3, 4]), layout={"xaxis": {"title": {"text": "step"}}, "yaxis": {"type": "log"}})


def panels():
    figure = make_subplots(1, 2, subplot_titles=["left", "right"]).add_scatter(x=[1], y=[2], row=1, col=2)
    figure.update_xaxes(title_text="epoch", tickfont_size=9).add_annotation(text="a mark", font_color="red")
    return figures.style(figure, "What one sees in two panels", y="loss")


def solid():
    return go.Figure(go.Scatter3d(x=[1], y=[2], z=[3]), layout={"scene": {"xaxis": {"title": {"text": "one"}}}, "margin": {"l": 3}})


@pytest.mark.parametrize("make", [single, panels, solid])
def test_a_dressed_figure_is_what_plotly_s_own_updates_make_of_it(make):
    ink = charts.INK["light"]
    usual = make().update_layout(title_text=None, font={"color": ink, "family": charts.FONT}, margin_t=14, height=300)
    usual.update_layout(template=figures.template())
    usual.update_xaxes(title_font_color=ink, tickfont_color=ink).update_yaxes(title_font_color=ink, tickfont_color=ink)
    usual.update_annotations(font_color=ink, selector=lambda note: note.font.color in (None, figures.INK))
    expected = json.loads(usual.to_json())
    # an axis that the figure leaves alone takes its colour from the font of the whole; an empty title is none
    left_alone = {"title": {"font": {"color": ink}}, "tickfont": {"color": ink}}
    expected["layout"] = {name: part for name, part in expected["layout"].items() if part not in (left_alone, {})}
    drawn = charts.Drawn(make(), height=300, margin=14)
    assert json.loads(go.Figure(drawn.to_dict()).to_json()) == expected
    assert drawn.text == ("What one sees in two panels" if make is panels else "") and (drawn.least > 0) == (make is panels)
