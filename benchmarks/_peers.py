"""The models that benchmarks/speed.py runs beside ours: one network, one budget, one ELBO.

Each peer is a function of a ``Task`` and a ``Course``. It builds its model, calls
``course.begin()`` and then, after each epoch, ``course.after_epoch(view)``, which stops the clock
and evaluates the held-out ELBO. A peer whose package is not here is skipped, which is said.
"""

import contextlib
import importlib
import io
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
LEARNING_RATE = 1e-3
N_SAMPLES = 16  # of z for each held-out row
PATIENCE = 180.0  # seconds after which a peer's remaining epochs are extrapolated


class Task(NamedTuple):
    """What every peer is given: scaled rows, and the network and budget of the plain loop."""

    x: np.ndarray  # (N, D) float32
    hidden: tuple[int, int]
    n_components: int
    epochs: int = 20
    batch: int = 128
    levels: tuple[int, ...] = ()  # of each category; their indicators are the last columns of x


class View(NamedTuple):
    """A model as it is now. ``log_noise`` None: trained with unit noise, fitted afterwards."""

    encode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # loc, log_scale
    decode: Callable[[torch.Tensor], torch.Tensor]
    log_noise: torch.Tensor | None = None


class Enough(Exception):
    """The peer has run for longer than its patience."""


@dataclass
class Course:
    """The clock of one training run, and the held-out ELBO after each epoch."""

    evaluate: Callable[[View], float]
    limit: float = PATIENCE
    setup: float = 0.0
    seconds: list[float] = field(default_factory=list)  # of training alone, after each epoch
    held_out: list[float] = field(default_factory=list)  # nats a row, original units

    def __post_init__(self):
        self._last = time.perf_counter()
        self._spent = 0.0

    def begin(self):
        now = time.perf_counter()
        self.setup, self._last = now - self._last, now

    def after_epoch(self, view=None):
        self._spent += time.perf_counter() - self._last
        self.seconds.append(self._spent)
        self.held_out.append(self.evaluate(view) if view else math.nan)
        if self._spent > self.limit:
            raise Enough
        self._last = time.perf_counter()

    def budget_seconds(self, epochs):
        """Of all epochs; extrapolated where the patience ended before."""
        return self._spent * epochs / len(self.seconds)

    def seconds_to(self, target):
        """Until the first epoch whose held-out ELBO is at least the target."""
        reached = [s for s, e in zip(self.seconds, self.held_out, strict=True) if e >= target]
        return reached[0] if reached else math.inf


class HeldOut:
    """Scaled held-out rows with one fixed noise; called with a view, its ELBO in original units."""

    def __init__(self, x, x_train, log_jacobian, n_components, levels=()):
        generator = torch.Generator().manual_seed(0)
        self.x, self.x_train = torch.from_numpy(x), torch.from_numpy(x_train[:5000])
        half = torch.randn(N_SAMPLES // 2, len(x), n_components, generator=generator)
        self.eps, self.log_jacobian = torch.cat([half, -half]), log_jacobian
        self.levels = levels

    @torch.no_grad()
    def __call__(self, view):
        log_noise = fitted_noise(view, self.x_train) if view.log_noise is None else view.log_noise
        elbos = [elbo(view, self.x, eps, log_noise, self.levels).mean() for eps in self.eps]
        return float(torch.stack(elbos).mean()) + self.log_jacobian


def elbo(view, x, eps, log_noise, levels=()):  # (N,)
    """Nats a row, in the scaled units."""
    loc, log_scale = view.encode(x)
    raw = view.decode(loc + torch.exp(log_scale) * eps)
    n_numbers = x.shape[1] - sum(levels)
    left = x[:, :n_numbers] - raw[:, :n_numbers]
    log_px_z = -0.5 * torch.exp(-2.0 * log_noise) * left.square().sum(-1)
    log_px_z = log_px_z - n_numbers * (log_noise + HALF_LOG_2PI)
    indicators, logits = (v[:, n_numbers:].split(levels, 1) for v in (x, raw))
    for seen, logit in zip(indicators, logits, strict=True):
        log_px_z = log_px_z + (seen * torch.log_softmax(logit, 1)).sum(-1)
    kl = 0.5 * (loc**2 + torch.exp(2.0 * log_scale) - 1.0) - log_scale
    return log_px_z - kl.sum(-1)


def fitted_noise(view, x):
    """The best shared noise scale of a model that was trained with another: from training rows."""
    loc, log_scale = view.encode(x)
    eps = torch.randn(loc.shape, generator=torch.Generator().manual_seed(1))
    left = x - view.decode(loc + torch.exp(log_scale) * eps)
    return 0.5 * torch.log(left.square().mean())


class PlainVAE(nn.Module):
    """The VAE that a tutorial writes, with a learnt noise scale; no linear path."""

    def __init__(self, n_columns, n_components, hidden, levels=()):
        super().__init__()
        self.levels = levels
        a, b = hidden
        k = n_components
        self.encoder = nn.Sequential(nn.Linear(n_columns, a), nn.GELU(), nn.Linear(a, b), nn.GELU())
        self.to_loc, self.to_log_scale = nn.Linear(b, k), nn.Linear(b, k)
        layers = [nn.Linear(k, b), nn.GELU(), nn.Linear(b, a), nn.GELU(), nn.Linear(a, n_columns)]
        self.decoder = nn.Sequential(*layers)
        self.log_noise = nn.Parameter(torch.zeros(()))

    def encode(self, x):
        h = self.encoder(x)
        return self.to_loc(h), self.to_log_scale(h)

    def forward(self, x):
        eps = torch.randn(len(x), self.to_loc.out_features)
        return -elbo(self.view(), x, eps, self.log_noise, self.levels).mean()

    def view(self):
        return View(self.encode, self.decoder, self.log_noise)


def module(task):
    return PlainVAE(task.x.shape[1], task.n_components, task.hidden, task.levels)


# -- the loops ------------------------------------------------------------------------------------


def plain(task, course):
    """nn.Module, DataLoader and Adam."""
    data = TensorDataset(torch.from_numpy(task.x))
    loader = DataLoader(data, batch_size=task.batch, shuffle=True)
    model = module(task)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    course.begin()
    for _ in range(task.epochs):
        for (x,) in loader:
            loss = model(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        course.after_epoch(model.view())


def skorch(task, course):
    """skorch.NeuralNet around the plain module."""
    import skorch

    class Net(skorch.NeuralNet):
        def get_loss(self, y_pred, y_true, X=None, training=False):
            return y_pred  # the module returns its loss

    net = Net(
        module(task),
        criterion=nn.Identity,
        optimizer=torch.optim.Adam,
        lr=LEARNING_RATE,
        batch_size=task.batch,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    ).initialize()
    course.begin()
    for _ in range(task.epochs):
        net.partial_fit(task.x, epochs=1)
        course.after_epoch(net.module_.view())


def import_jax():
    """jax, on one thread as everybody else here."""
    one_thread = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.setdefault("XLA_FLAGS", one_thread)
    os.environ.setdefault("NPROC", "1")
    import jax

    return jax


def jax_loop(task, course):
    """Plain JAX, data on the device, an epoch one jitted scan; compiled before the clock starts."""
    jax = import_jax()
    model, data = module(task), jax.numpy.asarray(task.x)
    train_epoch, start = jax_epoch(jax, task)
    key, rng = jax.random.key(0), np.random.default_rng(0)
    jax.block_until_ready(train_epoch(start(model), data, jax_order(rng, task), key))
    state = start(model)
    course.begin()
    for _ in range(task.epochs):
        state = train_epoch(state, data, jax_order(rng, task), key)
        jax.block_until_ready(state)
        course.after_epoch(_loaded(model, state["parameters"]).view())


def jax_order(rng, task):
    """Whole batches only: another shape would be compiled again."""
    n_steps = len(task.x) // task.batch
    order = rng.permutation(len(task.x))[: n_steps * task.batch]
    return order.astype(np.int32).reshape(n_steps, task.batch)


def _loaded(model, parameters):
    """The torch module with JAX's parameters, to be evaluated as the others are."""
    model.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in parameters.items()})
    return model


def jax_epoch(jax, task):
    """The compiled epoch, and what makes its state of the torch module's weights."""
    jnp = jax.numpy
    gradient = jax.grad(partial(_jax_loss, jax))

    def start(model):
        parameters = {k: jnp.array(v.numpy(), copy=True) for k, v in model.state_dict().items()}
        moments = {m: jax.tree.map(jnp.zeros_like, parameters) for m in ("mean", "square")}
        return {"parameters": parameters, "t": jnp.zeros((), jnp.int32), **moments}

    @partial(jax.jit, donate_argnums=0)
    def train_epoch(state, data, order, key):
        def step(state, chosen):
            eps_key = jax.random.fold_in(key, state["t"])
            g = gradient(state["parameters"], data[chosen], eps_key)
            return _jax_adam(jax, state, g), None

        return jax.lax.scan(step, state, order)[0]

    return train_epoch, start


def _jax_loss(jax, p, x, key):
    """Minus the mean ELBO, as PlainVAE.forward."""
    jnp = jax.numpy

    def dense(h, name):
        return h @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def gelu(h):
        return jax.nn.gelu(h, approximate=False)

    h = gelu(dense(gelu(dense(x, "encoder.0")), "encoder.2"))
    loc, log_scale = dense(h, "to_loc"), dense(h, "to_log_scale")
    z = loc + jnp.exp(log_scale) * jax.random.normal(key, loc.shape)
    x_hat = dense(gelu(dense(gelu(dense(z, "decoder.0")), "decoder.2")), "decoder.4")
    square = 0.5 * jnp.exp(-2.0 * p["log_noise"]) * ((x - x_hat) ** 2).sum(-1)
    kl = (0.5 * (loc**2 + jnp.exp(2.0 * log_scale) - 1.0) - log_scale).sum(-1)
    return (square + kl).mean() + x.shape[1] * (p["log_noise"] + HALF_LOG_2PI)


def _jax_adam(jax, state, grad):
    """Kingma & Ba 2015, with torch's defaults."""
    jnp, each = jax.numpy, jax.tree.map
    t = state["t"] + 1
    mean = each(lambda m, g: 0.9 * m + 0.1 * g, state["mean"], grad)
    square = each(lambda v, g: 0.999 * v + 0.001 * g * g, state["square"], grad)
    rate = LEARNING_RATE / (1.0 - 0.9**t)
    unbias = 1.0 / (1.0 - 0.999**t)
    parameters = each(
        lambda p, m, v: p - rate * m / (jnp.sqrt(v * unbias) + 1e-8),
        state["parameters"],
        mean,
        square,
    )
    return {"parameters": parameters, "mean": mean, "square": square, "t": t}


# -- the libraries --------------------------------------------------------------------------------


def pythae(task, course):
    """pythae's VAE and BaseTrainer (unit noise), with the plain loop's network."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    encoder, decoder = _pythae_networks(module(task))
    config = VAEConfig(input_dim=(task.x.shape[1],), latent_dim=task.n_components)
    vae = VAE(config, encoder=encoder, decoder=decoder)
    x = torch.from_numpy(task.x)
    with tempfile.TemporaryDirectory() as folder, quiet():
        settings = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=task.epochs,
            per_device_train_batch_size=task.batch,
            learning_rate=LEARNING_RATE,
            no_cuda=True,
        )
        trainer = BaseTrainer(vae, BaseDataset(x, torch.zeros(len(x))), training_config=settings)
        trainer.prepare_training()
        course.begin()
        for epoch in range(1, task.epochs + 1):
            trainer.train_step(epoch)
            course.after_epoch(_pythae_view(vae))


@contextlib.contextmanager
def quiet():
    """No messages of pythae's many loggers, and no progress bars."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _pythae_networks(model):
    """The plain module's halves as pythae wants them."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            loc, log_scale = self.model.encode(x)
            return ModelOutput(embedding=loc, log_covariance=2.0 * log_scale)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.layers = model.decoder

        def forward(self, z):
            return ModelOutput(reconstruction=self.layers(z))

    return Encoder(), Decoder()


def _pythae_view(vae):
    def encode(x):
        output = vae.encoder(x)
        return output.embedding, 0.5 * output.log_covariance

    return View(encode, lambda z: vae.decoder(z)["reconstruction"])


def pyod_vae(task, course):
    """PyOD's VAE, with the weight of its KL set to unit noise (the default leaves it out)."""
    from pyod.models.vae import VAE

    detector = VAE(
        encoder_neuron_list=list(task.hidden),
        decoder_neuron_list=list(task.hidden[::-1]),
        latent_dim=task.n_components,
        beta=2.0 / task.x.shape[1],  # its squared error is a mean over the columns
        capacity=math.inf,
        dropout_rate=0.0,
        **_pyod_budget(task),
    )

    def encode(x):
        loc, log_variance = detector.model.encode(x)
        return loc, 0.5 * log_variance

    _run_pyod(detector, task, course, View(encode, lambda z: detector.model.decode(z)))


def pyod_autoencoder(task, course):
    """PyOD's AutoEncoder: no density, so its time alone."""
    from pyod.models.auto_encoder import AutoEncoder

    hidden = [*task.hidden, task.n_components]
    detector = AutoEncoder(
        hidden_neuron_list=hidden, batch_norm=False, dropout_rate=0.0, **_pyod_budget(task)
    )
    _run_pyod(detector, task, course, None)


def _pyod_budget(task):
    return {
        "preprocessing": False,
        "lr": LEARNING_RATE,
        "epoch_num": task.epochs,
        "batch_size": task.batch,
        "device": "cpu",
        "verbose": 0,
        "random_state": 0,
    }


def _run_pyod(detector, task, course, view):
    detector.epoch_update = lambda: course.after_epoch(view)  # PyOD's hook after each epoch
    # Fitting ends with the scores of the training rows, which are nobody's training time.
    detector.decision_function = lambda X, batch_size=None: np.zeros(len(X))
    course.begin()
    with contextlib.redirect_stdout(io.StringIO()):
        detector.fit(task.x)


PEERS = {
    "JAX": ("jax", jax_loop),
    "skorch": ("skorch", skorch),
    "pythae": ("pythae.models", pythae),
    "PyOD VAE": ("pyod.models.vae", pyod_vae),
    "PyOD AE": ("pyod.models.auto_encoder", pyod_autoencoder),
}


def available_peers():
    """The peers whose packages can be imported; says which cannot, and why."""
    found = {}
    for name, (package, run) in PEERS.items():
        if can_import(package, name):
            found[name] = run
    return found


def can_import(package, name):
    try:
        import_jax() if package == "jax" else importlib.import_module(package)
    except ImportError as error:
        print(f"skipped: {name} ({error})")
        return False
    return True


def race(run, task, evaluate, seed=0, limit=PATIENCE):
    """One peer over its budget; a course of fewer epochs if its patience ended."""
    torch.manual_seed(seed)
    course = Course(evaluate, limit)
    with contextlib.suppress(Enough):
        run(task, course)
    return course


def time_tvae(frame, epochs):
    """Seconds in which ctgan's TVAE fits a table with categories, its own transformer included."""
    from ctgan import TVAE

    categorical = list(frame.select_dtypes(exclude="number"))
    frame = frame.astype(dict.fromkeys(categorical, str))
    start = time.perf_counter()
    TVAE(epochs=epochs, enable_gpu=False).fit(frame, discrete_columns=categorical)
    return time.perf_counter() - start
