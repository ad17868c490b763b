"""MNIST (grey, 60,000 + 10,000 rows): fit time, held-out bound, codes against PCA's, inactive
components. Exits with 1 below a floor. Needs the shared data."""

import time
import warnings

import numpy as np
from _harness import check_floors, parameters, parser, save, shared_data
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer


def linear_probe(Z_train, y_train, Z_test, y_test):
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return 100 * probe.fit(Z_train, y_train).score(Z_test, y_test)


def clustering_accuracy(Z, y):
    counts = confusion_matrix(y, KMeans(10, n_init=4, random_state=0).fit_predict(Z))
    return 100 * counts[linear_sum_assignment(-counts)].sum() / len(y)


if __name__ == "__main__":
    arguments = parser(__doc__, seeds=1).parse_args()
    settings = parameters(arguments.parameters)
    X, y, _ = shared_data().load("mnist")
    X_train, y_train, X_test, y_test = X[:60000], y[:60000], X[60000:], y[60000:]

    start = time.perf_counter()
    vae = VAETransformer(10, random_state=0, **settings).fit(X_train)
    seconds = time.perf_counter() - start
    linear = VAETransformer(10, max_iter=0).fit(X_train)
    elbo = {
        name: model.score_samples(X_test[:5000], method="elbo").mean()
        for name, model in {"trained": vae, "linear": linear}.items()
    }
    start = time.perf_counter()
    Z_train, Z_test = vae.transform(X_train), vae.transform(X_test)
    transform_seconds = time.perf_counter() - start
    ours = linear_probe(Z_train, y_train, Z_test, y_test)
    pca = PCA(10, random_state=0).fit(X_train)
    theirs = linear_probe(pca.transform(X_train), y_train, pca.transform(X_test), y_test)
    print(
        f"fit {seconds:.1f} s, {vae.n_iter_} epochs; "
        f"transform of 70,000 rows {transform_seconds:.1f} s"
    )
    print(f"held-out ELBO {elbo['trained']:.1f}, linear start {elbo['linear']:.1f} nats")
    print(f"linear probe {ours:.1f}%, PCA {theirs:.1f}%", flush=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wide = VAETransformer(50, random_state=0, **settings).fit(X_train)
    Z = wide.transform(X_test)
    plain, scaled = (
        clustering_accuracy(Z, y_test),
        clustering_accuracy(StandardScaler().fit_transform(Z), y_test),
    )
    print(
        f"50 components: {wide.n_active_components_} active, "
        f"{int((Z == 0).all(0).sum())} exactly 0; "
        f"k-means {plain:.1f}% as is, {scaled:.1f}% after StandardScaler"
    )
    result = {
        "fit s": seconds,
        "ELBO": elbo["trained"],
        "linear ELBO": elbo["linear"],
        "probe": ours,
        "PCA probe": theirs,
        "active of 50": wide.n_active_components_,
        "k-means": plain,
        "k-means scaled": scaled,
    }
    save("mnist", [result])
    check_floors(
        [
            ("seconds under 60 (60 - fit)", 60 - seconds, 0.0),
            ("ELBO above the linear start", elbo["trained"] - elbo["linear"], 250.0),
            ("linear probe above PCA", ours - theirs, 9.0),
            ("k-means after StandardScaler, less without", scaled - plain, -3.0),
            ("KL falls from component to component", -np.diff(wide.kl_per_component_).max(), 0.0),
        ]
    )
