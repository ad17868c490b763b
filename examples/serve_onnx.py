"""
Serve a model without torch
===========================

A web service that scores rows needs neither scikit-learn, nor torch, nor skvae: it needs one file
and onnxruntime. A pipeline is exported as one ONNX model, columns of text and missing values
included, and its answers are compared with the pipeline's own.

Where onnxruntime is not installed, the models are written and described, but not run. The export
itself needs ``pip install "skvae[onnx]"``.
"""

# %%
# A table of several kinds
# ------------------------
# Patients with breast tumours, numbers as they were measured, and two more columns: the hospital as
# text, and a test that was not done for everyone.

import time
from importlib.util import find_spec

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from skvae import VAEOutlierDetector, VAETransformer, to_onnx

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
X = X[["mean radius", "mean texture", "mean smoothness", "mean symmetry"]].astype(np.float32)
rng = np.random.default_rng(0)
X["hospital"] = rng.choice(["north", "south", "west"], len(X))
X["marker"] = np.where(rng.random(len(X)) < 0.3, np.nan, rng.normal(5.0 - y, 1.0))
X["marker"] = X["marker"].astype(np.float32)
X.loc[rng.choice(len(X), 20, replace=False), "hospital"] = None
train, test = X[:400], X[400:].reset_index(drop=True)
print(train.head(3))

# %%
# Codes and a classifier as one model
# -----------------------------------
# ``VAETransformer`` takes the frame as it is. The model has an input for each column, by its name.

classifier = make_pipeline(
    VAETransformer(3, random_state=0), LogisticRegression(max_iter=1000)
).fit(train, y[:400])
model = to_onnx(classifier)
for value in model.graph.input:
    kind = value.type.tensor_type.elem_type
    print(f"{value.name:16} {'text' if kind == 8 else 'float32'}")
print(f"{len(model.SerializeToString()) / 1000:.0f} kB, {len(model.graph.node)} nodes")


# %%
# What a service does
# -------------------
# It feeds a column of shape (n, 1) for each input. A missing number is nan and a missing text is
# the empty string. "east" is a hospital that no training row had: it counts as missing, as in
# ``transform``.


def columns_of(rows):
    """Rows as onnxruntime is fed them."""
    text = rows[["hospital"]].astype(object).where(rows[["hospital"]].notna(), "")
    numbers = {name: rows[[name]].to_numpy(np.float32) for name in rows if name != "hospital"}
    return numbers | {"hospital": text.to_numpy()}


def run(model, feed):
    """The outputs of a model by name, or None where nothing can run it."""
    if find_spec("onnxruntime") is None:
        print("onnxruntime is not installed here, so the model is not run.")
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    begun = time.perf_counter()
    values = session.run(None, feed)
    print(f"{1000 * (time.perf_counter() - begun):.1f} ms")
    return dict(zip([output.name for output in session.get_outputs()], values, strict=True))


test.loc[:4, "hospital"] = "east"
found = run(model, columns_of(test))
if found is not None:
    expected = classifier.predict_proba(test)
    print(f"Largest difference of {len(test)} probabilities: ", end="")
    print(f"{np.abs(found['probabilities'] - expected).max():.1e}")

# %%
# Outliers among rows that a ColumnTransformer encodes
# ----------------------------------------------------
# Steps of scikit-learn are converted by skl2onnx. A pipeline that begins with one of them does not
# know the dtypes of the frame any more, so it needs some rows; its model has all their columns. The
# detector gives a label, -1 for outliers, and the score by which it decides. The empty text is a
# missing hospital here, too: the encoder was fitted to some.

numbers = list(X.columns.drop(["hospital", "marker"]))
encoder = make_column_transformer(
    (StandardScaler(), numbers),
    (OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["hospital"]),
)
detector = make_pipeline(encoder, VAEOutlierDetector(random_state=0)).fit(train[y[:400] == 1])
model = to_onnx(detector, train)
found = run(model, columns_of(test))
if found is not None:
    labels = found["label"][:, 0]
    print(f"Outliers among benign: {(labels[y[400:] == 1] == -1).mean():.0%}, ", end="")
    print(f"among malignant: {(labels[y[400:] == 0] == -1).mean():.0%}")
    difference = np.abs(found["scores"][:, 0] - detector.decision_function(test)).max()
    print(f"Largest difference of the scores: {difference:.1e} nats")

# %%
# Rows from codes, and scores
# ---------------------------
# ``method`` exports another method of a transformer: its inverse, whose outputs are columns with
# the dtypes of the frame, or the evidence lower bound of log p(x).

vae = VAETransformer(2, random_state=0).fit(train)
found = run(to_onnx(vae, method="inverse_transform"), {"Z": np.zeros((1, 2), np.float32)})
if found is not None:
    print(pd.DataFrame({name: value[:, 0] for name, value in found.items()}).T)
found = run(to_onnx(vae, method="elbo"), columns_of(test))
if found is not None:
    difference = np.abs(found["elbo"][:, 0] - vae.score_samples(test, method="elbo")).max()
    print(f"Largest difference of the bounds: {difference:.1e} nats")
