"""stub"""
import plotly.graph_objects as go
def figures(lab): return {"a": go.Figure(go.Scatter(x=[1],y=[1]))}
def norms_view(net, params): return go.Figure(go.Scatter(x=[1],y=[1]))
coefficient_view = norms_view
