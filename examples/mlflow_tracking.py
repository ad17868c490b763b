"""
Track and reload with MLflow
============================

A fitted pipeline is logged to MLflow by skops and loaded again. skops reads no pickle: it builds
the types that it knows, and those of skvae, which ``SKOPS_TRUSTED_TYPES`` lists. The pipeline that
comes back gives the same probabilities, bit by bit.

MLflow is not installed with skvae. Without it the example says so and ends.
"""

import logging
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from skvae import SKOPS_TRUSTED_TYPES, VAETransformer

# %%
# A pipeline, fitted
# ------------------

X, y = load_wine(return_X_y=True, as_frame=True)
train, test, y_train, y_test = train_test_split(X, y, random_state=0)
pipeline = make_pipeline(VAETransformer(4, random_state=0), LogisticRegression(max_iter=1000))
pipeline.fit(train, y_train)
accuracy = pipeline.score(test, y_test)
print(f"accuracy: {accuracy:.1%}")

# %%
# Logged, and loaded again
# ------------------------
# The curve of the held-out bound is logged beside the model. The store is a folder that is removed
# at the end; your own is a server or a folder of yours.

try:
    import mlflow
    import mlflow.sklearn
except ImportError as error:
    print(f"left out: {error}")
else:
    warnings.simplefilter("ignore")  # of MLflow: what it guesses about the environment
    logging.getLogger("mlflow").setLevel("WARNING")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{Path(folder) / 'runs.db'}")
        experiment = mlflow.create_experiment("wine", artifact_location=Path(folder).as_uri())
        with mlflow.start_run(experiment_id=experiment):
            vae = pipeline[0]
            mlflow.log_params({"n_components": vae.n_components_, "best_epoch": vae.best_iter_})
            mlflow.log_metric("accuracy", accuracy)
            for epoch, bound in enumerate(vae.validation_scores_):
                mlflow.log_metric("held_out_bound", bound, step=epoch)
            info = mlflow.sklearn.log_model(
                pipeline,
                name="model",
                serialization_format="skops",
                skops_trusted_types=SKOPS_TRUSTED_TYPES,
                pip_requirements=["skvae", "skops"],
            )
        again = mlflow.sklearn.load_model(info.model_uri)
        same = np.array_equal(again.predict_proba(test), pipeline.predict_proba(test))
        assert same, "the loaded pipeline gives other probabilities"
        print("loaded again:", type(again[0]).__name__, "with the same probabilities")
