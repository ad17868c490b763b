"""
Relatives: autoencoders, denoising, sparse codes, and posterior collapse
========================================================================

A variational autoencoder has relatives that leave a part of it out, or add one. Here they are
beside it on scikit-learn's digits, 8 x 8 pixels from 0 to 16: an autoencoder, which has no prior;
denoising; sparse codes; and a model that pays so much for its codes that it gives them up, with
what tells you so.
"""

# %%
# Without the price of a code: an autoencoder
# -------------------------------------------
#
# The bound has two terms: how well a code lets the decoder expect its row, less the divergence of
# the code from the prior. With ``beta=0`` the second term is gone. What is left is an autoencoder.

import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, MiniBatchDictionaryLearning
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPRegressor

from skvae import VAETransformer

start = time.perf_counter()
X, y = load_digits(return_X_y=True)
train, test, labels = X[:1000], X[1000:1500], y[1000:1500]
rng = np.random.default_rng(0)


def fitted(n_components, X=train, **params):
    """A model of the digits; its codes are in units of the prior's standard deviation."""
    params = {"scaling": "common", "whiten": True, "random_state": 0} | params
    return VAETransformer(n_components, **params).fit(X)


def error(rows, truth=test):
    """Root mean squared error of a pixel."""
    return np.sqrt(np.mean((rows - truth) ** 2))


variational = fitted(10)
autoencoder = fitted(10, beta=0.0, early_stopping=False, max_iter=80)
models = {"variational": variational, "autoencoder (beta=0)": autoencoder}

# %%
# Both reproduce new digits about equally well. But codes of the autoencoder may lie anywhere, and
# they lie far apart. So a draw from the prior lies where no digit has a code, and the decoder makes
# junk of it. A classifier that is to tell decoded draws from decoded digits is hardly ever wrong
# then (1 is never, and 0.5 by chance). The density of new digits is low, too.


def told_apart(rows, others):
    """How well a random forest tells two sets of rows apart: area under the ROC curve."""
    both, which = np.concatenate([rows, others]), np.repeat([0, 1], [len(rows), len(others)])
    forest = RandomForestClassifier(50, random_state=0)
    return cross_val_score(forest, both, which, scoring="roc_auc", cv=3).mean()


draws = {}
print(f"{'':22}{'error':>8}{'sd of codes':>14}{'draws told apart':>19}{'ELBO':>8}")
for name, model in models.items():
    codes = model.transform(test)
    decoded = model.inverse_transform(codes)
    draws[name] = model.inverse_transform(rng.normal(size=codes.shape))
    apart, elbo = told_apart(decoded, draws[name]), model.score_samples(test, method="elbo").mean()
    print(f"{name:22}{error(decoded):8.2f}{codes.std():14.1f}{apart:19.2f}{elbo:8.0f}")


# %%
# Draws from the prior are above. Below, each row goes from a zero to a one in equal steps between
# their codes. There the two hardly differ: a decoder of this size is smooth by itself. What the
# autoencoder lacks is a place from which to draw.


def show(axes, pictures, n_columns, title):
    """Tiles with a line between them."""
    tiles = np.pad(pictures.reshape(-1, n_columns, 8, 8), [(0, 0), (0, 0), (1, 1), (1, 1)])
    axes.imshow(np.block([list(row) for row in tiles]), cmap="gray_r", vmin=0, vmax=16)
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[])


figure, axes = plt.subplots(2, 2, figsize=(9, 5.4), layout="constrained")
for column, (name, model) in enumerate(models.items()):
    zeros, ones = (model.transform(test[labels == digit][:4]) for digit in (0, 1))
    steps = np.linspace(0.0, 1.0, 9)[None, :, None]
    way = zeros[:, None] + steps * (ones - zeros)[:, None]
    show(axes[0, column], draws[name][:45], 9, f"{name}: draws from the prior")
    show(axes[1, column], model.inverse_transform(way.reshape(-1, 10)), 9, "from a zero to a one")
figure.savefig("relatives_smooth.png", dpi=100)

# %%
# Denoising
# ---------
#
# A denoising autoencoder learns to return clean rows from spoilt ones, so it needs clean rows. A
# variational one has noise in its model. Fitted to spoilt rows alone, it puts what columns do not
# share into the noise, and comes close.

spoilt_train, spoilt = (rows + 4.0 * rng.normal(size=rows.shape) for rows in (train, test))
pca = PCA(15).fit(spoilt_train)
vae = fitted(20, spoilt_train)
network = MLPRegressor(hidden_layer_sizes=(128, 128), early_stopping=True, random_state=0)
network.fit(spoilt_train / 16.0, train / 16.0)
cleaned = {
    "spoilt": spoilt,
    "PCA, from spoilt rows": pca.inverse_transform(pca.transform(spoilt)),
    "variational, from spoilt rows": vae.inverse_transform(vae.transform(spoilt)),
    "denoising network, from pairs": 16.0 * network.predict(spoilt / 16.0),
}
print("Error of new digits, with noise of 4 added:")
for name, rows in cleaned.items():
    print(f"  {name:32}{error(rows):5.2f}")

figure, axes = plt.subplots(5, 1, figsize=(7, 4.4), layout="constrained")
for panel, (name, rows) in zip(axes, ({"clean": test} | cleaned).items(), strict=True):
    show(panel, rows[:16], 16, name)
figure.savefig("relatives_denoising.png", dpi=100)

# %%
# Sparse codes
# ------------
#
# A sparse autoencoder has more components than it needs, and uses few of them for each row.
# Dictionary learning is the linear one: 64 atoms, of which each digit gets at most ten. A
# variational autoencoder is sparse in another sense. Each row uses all of its components, and it
# has no more of them than the columns pay for.

centre = train.mean(axis=0)
dictionary = MiniBatchDictionaryLearning(
    64, transform_algorithm="omp", transform_n_nonzero_coefs=10, random_state=0, max_iter=2
).fit(train - centre)
sparse, dense = dictionary.transform(test - centre), variational.transform(test)
print(f"{'':24}{'components':>12}{'not zero':>10}{'error':>8}")
for name, codes, rows in [
    ("dictionary learning", sparse, sparse @ dictionary.components_ + centre),
    ("variational", dense, variational.inverse_transform(dense)),
]:
    n_used = (codes != 0.0).sum(axis=1).mean()
    print(f"{name:24}{codes.shape[1]:12}{n_used:10.1f}{error(rows):8.2f}")

# %%
# Posterior collapse
# ------------------
#
# A code is worth having as long as it lets the decoder expect more than it costs. With ``beta``
# above 1 each nat costs more. A component whose posterior is the prior in every row has collapsed:
# it says nothing. ``kl_per_component_`` shows that, ``n_active_components_`` counts the others, and
# ``fit`` warns.

figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
for beta in (1.0, 4.0, 16.0):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = fitted(20, beta=beta, early_stopping=False, max_iter=40)
    decoded = model.inverse_transform(model.transform(test))
    print(f"beta={beta:.0f}: {model.n_active_components_} of 20 active, error {error(decoded):.2f}")
    for warning in caught:
        print(f"  {warning.category.__name__}: {warning.message}")
    shown = np.maximum(model.kl_per_component_, 1e-4)
    axes.plot(range(1, 21), shown, marker="o", label=f"beta = {beta:.0f}")
axes.axhline(0.01, color="grey", linestyle=":", label="inactive below")
axes.set(xlabel="component", ylabel="mean KL divergence in nats", xticks=range(1, 21))
axes.set(yscale="log", ylim=(0.7e-4, 10.0))
axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
figure.savefig("relatives_collapse.png", dpi=100)

# %%
# The cure follows from the cause. If the price is too high, lower ``beta``. If the columns share no
# more than a few components can say, use as many as the warning names. More epochs do not help: at
# this price a collapsed component is worth nothing.

print(f"{time.perf_counter() - start:.0f} s in all.")
