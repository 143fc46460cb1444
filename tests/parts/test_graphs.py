"""Operators of graphs against PyTorch-free algebra in NumPy and networkx."""

import networkx as nx
import numpy as np
import torch

from claimlab.parts.graphs import propagation


def test_the_symmetric_operator_is_the_identity_minus_the_normalised_laplacian_with_loops():
    graph = nx.gnp_random_graph(12, 0.3, seed=1)
    a = torch.tensor(nx.to_numpy_array(graph))
    graph.add_edges_from((v, v) for v in graph)  # networkx counts a loop twice in a degree, NumPy's row sums once
    loops = nx.to_numpy_array(graph)
    root = np.diag(loops.sum(1) ** -0.5)
    assert np.allclose(propagation(a).numpy(), root @ loops @ root)
    assert np.isclose(np.linalg.eigvalsh(propagation(a).numpy()).max(), 1)


def test_rows_sum_to_one_in_a_directed_graph_and_a_lonely_node_reads_itself():
    a = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])[None].expand(2, 3, 3)
    found = propagation(a, symmetric=False)
    assert torch.allclose(found.sum(-1), torch.ones(2, 3))
    assert torch.equal(found[1, 1], torch.tensor([0.0, 1.0, 0.0])) and torch.allclose(found[0, 0], torch.tensor([1 / 3, 2 / 3, 0]))
    assert torch.equal(propagation(torch.zeros(2, 2)), torch.eye(2))
