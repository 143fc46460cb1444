"""The same training in other libraries, as their documentation does it: each gives the seconds of one optimiser step.

ImportError where one is not installed: they are the extra `bench` of pyproject.toml.
"""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable

import torch
from nets import IMAGES, LABELS, Digits
from torch import nn
from torch.nn import functional as F

EPOCHS = 5
STEPS = EPOCHS * math.ceil(len(IMAGES) / Digits.batch_size)


def skorch(task: Digits) -> Callable[[], float]:
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(
        task.init(), criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=task.lr, batch_size=task.batch_size, verbose=0,
        train_split=None, iterator_train__shuffle=True,
    ).initialize()  # fmt: skip

    def fit() -> float:
        began = time.perf_counter()
        net.partial_fit(task.x, task.y, epochs=EPOCHS)
        return (time.perf_counter() - began) / STEPS

    return fit


def lightning(task: Digits) -> Callable[[], float]:
    import lightning as L
    from torch.utils.data import DataLoader, TensorDataset

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.began, self.spent = task.init(), 0.0, 0.0

        def training_step(self, batch, _):
            x, y = batch
            return F.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=task.lr)

        def on_train_start(self):
            self.began = time.perf_counter()

        def on_train_end(self):
            self.spent = time.perf_counter() - self.began

    module, rows = Module(), DataLoader(TensorDataset(task.x, task.y), task.batch_size, shuffle=True)

    def fit() -> float:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        L.Trainer(max_epochs=EPOCHS, accelerator="cpu", **quiet).fit(module, rows)
        return module.spent / STEPS

    return fit


def keras(task: Digits) -> Callable[[], float]:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    sizes = task.sizes
    layers = [keras.layers.Dense(n, activation="relu") for n in sizes[1:-1]]
    model = keras.Sequential([keras.layers.Input((sizes[0],)), *layers, keras.layers.Dense(sizes[-1])])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(task.lr), loss=loss)

    def fit() -> float:
        began = time.perf_counter()
        model.fit(task.x.numpy(), task.y.numpy(), batch_size=task.batch_size, epochs=EPOCHS, verbose=0)
        return (time.perf_counter() - began) / STEPS

    return fit


def jax(sizes: tuple[int, ...], members: int, calls: int = 20) -> tuple[Callable[[], float], float]:
    """`jit(vmap(step))`; also the seconds that compiling takes."""
    import jax
    from jax import numpy as jnp

    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        weights = [jax.random.normal(k, (a, b)) / a**0.5 for k, a, b in zip(keys, sizes, sizes[1:], strict=False)]
        return [(w, jnp.zeros(w.shape[1])) for w in weights]

    every = jax.jit(jax.vmap(_step(), in_axes=(0, 0, 0, None, 0)), donate_argnums=(0, 1, 2))
    keys = jax.random.split(jax.random.key(0), members)
    nets = jax.vmap(init)(keys)
    state = (nets, *(jax.tree.map(jnp.zeros_like, nets) for _ in range(2)))
    split = jax.jit(jax.vmap(lambda k: jax.random.split(k, calls)))
    count = 0

    def go() -> float:
        nonlocal state, count, keys
        began = time.perf_counter()
        drawn = split(keys)
        for k in range(calls):
            count += 1
            state = every(*state, count, drawn[:, k])
        keys = drawn[:, -1]
        jax.block_until_ready(state)
        return (time.perf_counter() - began) / calls

    began = time.perf_counter()
    go()
    return go, time.perf_counter() - began


def _step():
    """One step of one network in JAX: a batch of digits, the mean cross entropy, Adam by hand."""
    import jax
    from jax import numpy as jnp

    images, labels = jnp.asarray(IMAGES.numpy()), jnp.asarray(LABELS.numpy())

    def loss(net, x, y):
        for w, b in net[:-1]:
            x = jax.nn.relu(x @ w + b)
        w, b = net[-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(x @ w + b), y[:, None], 1).mean()

    def step(net, mean, square, t, key):
        rows = jax.random.randint(key, (Digits.batch_size,), 0, len(images))
        slope = jax.grad(loss)(net, images[rows], labels[rows])
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, slope)
        square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, square, slope)
        a, b = 1 - 0.9**t, 1 - 0.999**t
        net = jax.tree.map(lambda p, m, v: p - 1e-3 * (m / a) / (jnp.sqrt(v / b) + 1e-8), net, mean, square)
        return net, mean, square

    return step
