"""
Pictures: how a fit went, where rows lie, what components mean
===============================================================

A fitted model is looked at by displays, which follow scikit-learn's convention:
``XDisplay.from_estimator(estimator, X, ax=None)`` draws, and the object keeps what it drew. Each
picture here is also written to the current directory, or to the folder that is named after the
script. MNIST, the Frey faces and the penguins are taken from ../shared/data where they are at hand,
else scikit-learn's own digits, no faces, and its wines.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from skvae import VAEOutlierDetector, VAETransformer
from skvae.displays import (
    ComponentDisplay,
    LatentDisplay,
    ManifoldDisplay,
    OutlierDisplay,
    ReconstructionDisplay,
    TrainingCurveDisplay,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
if SHARED.exists():
    sys.path.append(str(SHARED))
    from load import load


def write(display, name):
    """Write a picture; in the gallery of the docs its figure is shown, too."""
    display.figure_.savefig(FOLDER / f"{name}.png", dpi=100)
    print(f"Wrote {FOLDER / name}.png")


# %%
# Digits on a plane
# -----------------
#
# Two components are a map. The grey values of MNIST are probabilities of ink: a Bernoulli
# likelihood. Those of the small digits are not, for most of their pixels are grey.

if SHARED.exists():
    pixels, digit, _ = load("mnist")
    rows = np.random.default_rng(0).choice(len(pixels), 6000, replace=False)
    pixels, digit, image_shape = pixels[rows] / 255.0, digit[rows], (28, 28)
    likelihood = "bernoulli"
else:
    pixels, digit = load_digits(return_X_y=True)
    pixels, image_shape, likelihood = pixels / 16.0, (8, 8), "auto"
train, test = pixels[: -len(pixels) // 5], pixels[-len(pixels) // 5 :]

plane = VAETransformer(2, likelihood=likelihood, random_state=0).fit(train)

# %%
# How did the fit go? The linear model is where training begins, and its bound is the dashed line.
# The epoch that is kept is the best on held-out rows. The KL divergence is what the codes tell of a
# row: where it falls to 0, they tell nothing.

write(TrainingCurveDisplay.from_estimator(plane), "training_curve")

# %%
# Where do the rows lie? The ellipses hold 90% of the posterior q(z | x) of some of them.

write(
    LatentDisplay.from_estimator(plane, test, digit[-len(test) :], n_ellipses=30),
    "latent_map",
)

# %%
# The same by how likely rows are: what lies between the digits is unlikely.

write(LatentDisplay.from_estimator(plane, test, score="elbo"), "latent_score")

# %%
# Maps of many rows count them in cells. These are 200,000: all digits over and over, with noise.

rng = np.random.default_rng(0)
drawn = rng.integers(len(train), size=200_000)
many = np.empty((len(drawn), train.shape[1]), dtype=np.float32)
for part in np.array_split(np.arange(len(drawn)), 20):
    noisy = train[drawn[part]] + 0.15 * rng.standard_normal((len(part), train.shape[1]))
    many[part] = noisy.clip(0.0, 1.0)
write(LatentDisplay.from_estimator(plane, many, digit[drawn]), "latent_density")
del many

# %%
# What does the decoder make of the plane? Each tile is decoded from quantiles of the prior.

write(ManifoldDisplay.from_estimator(plane, image_shape=image_shape), "digits_manifold")

# %%
# The same of the Frey faces: the plane holds how the head is turned, and what the face expresses.

if SHARED.exists():
    faces, _, _ = load("frey_faces")
    model = VAETransformer(2, random_state=0).fit(faces.astype(float))
    write(ManifoldDisplay.from_estimator(model, image_shape=(28, 20)), "faces_manifold")

# %%
# With more components, reconstructions are sharper, and each component has a meaning of its own:
# red pixels get more ink as it rises by one standard deviation, blue ones less.

deep = VAETransformer(10, likelihood=likelihood, random_state=0).fit(train)
write(ReconstructionDisplay.from_estimator(deep, test, image_shape=image_shape), "reconstruction")
write(
    ComponentDisplay.from_estimator(deep, test, components=range(8), image_shape=image_shape),
    "components_of_images",
)

# %%
# A table
# -------
#
# In tables the question is what a component means. ``component_effects`` says it in original units:
# how numbers, and probabilities of levels, change as the component rises by a standard deviation.

if SHARED.exists():
    table, kind, _ = load("penguins")
else:
    table, kind = load_wine(return_X_y=True, as_frame=True)
    table["cultivar"] = kind.map({0: "Barolo", 1: "Grignolino", 2: "Barbera"})
model = VAETransformer(2, noise="per_column", random_state=0).fit(table)
print(model.component_effects(table).round(2).to_string())

# %%
# The display puts the columns that move most on top, in standard deviations of each, so that they
# compare. The line on a bar holds what it is for 80% of the rows.

write(ComponentDisplay.from_estimator(model, table), "components_of_columns")

# %%
# Curves show how columns follow the first component, at three quantiles of the second.

write(ManifoldDisplay.from_estimator(model), "columns_manifold")

# %%
# Rows coloured by a column, and how well each column is reproduced.

write(LatentDisplay.from_estimator(model, table, column=table.columns[-2]), "latent_column")
write(ReconstructionDisplay.from_estimator(model, table), "reconstruction_of_columns")

# %%
# Outliers
# --------
#
# How odd are rows, where does the detector draw the line, and what is odd about the oddest?

tumours, benign = load_breast_cancer(return_X_y=True, as_frame=True)
detector = VAEOutlierDetector(random_state=0).fit(tumours[benign == 1][:250])
new = pd.concat([tumours[benign == 1][250:], tumours[benign == 0]])
names = benign.loc[new.index].map({0: "malignant", 1: "benign"})
write(OutlierDisplay.from_estimator(detector, new, names), "outliers")
