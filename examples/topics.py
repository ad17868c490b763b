"""
Topics of a bag of words
========================

Topics of a bag of words: counts in a sparse matrix, a count likelihood, words along components.

A component is a direction from one topic to another. Its words are those whose expected count
differs most between its ends, two prior standard deviations to either side; its site is the one
whose articles lie furthest out. The table is 3,700 news articles where they are at hand in
../shared/data, else a synthetic bag of words with planted topics.
"""

import sys
import time
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from skvae import VAETransformer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
N_WORDS = 2000
PLANTED = {
    "football": "goal match team player coach league",
    "weather": "rain storm wind snow forecast flood",
    "markets": "shares bank profit investors stocks prices",
    "courts": "judge trial jury lawyer verdict appeal",
}


def load_articles():
    """Counts of the most frequent words, the words, and the site of each article."""
    sys.path.append(str(SHARED))
    from load import load

    X, site, meta = load("news_articles")
    frequent = np.sort(np.argsort(-np.asarray(X.sum(axis=0)).ravel(), kind="stable")[:N_WORDS])
    return X[:, frequent], meta["feature_names"][frequent], site


def plant_topics(n_rows=1500, n_common=30):
    """Articles of 60 words: a fifth common ones, the others mostly from one planted topic."""
    rng = np.random.default_rng(0)
    topics = [words.split() for words in PLANTED.values()]
    words = [word for topic in topics for word in topic] + [f"common{n}" for n in range(n_common)]
    share = rng.dirichlet(np.full(len(topics), 0.2), n_rows)
    of_topic = np.zeros((len(topics), len(words)))
    for number, topic in enumerate(topics):
        of_topic[number, [words.index(word) for word in topic]] = 0.8 / len(topic)
    of_topic[:, -n_common:] = 0.2 / n_common
    X = np.array([rng.multinomial(60, p / p.sum()) for p in share @ of_topic])
    return csr_matrix(X.astype(float)), np.array(words), np.array(list(PLANTED))[share.argmax(1)]


# %%
# What a component means is read from its two ends: which words become more frequent.


def ends(vae, component):
    """Expected counts at +2 and -2 along a component, in the middle of the others."""
    z = np.zeros((2, vae.n_components_))
    z[:, component] = 2.0, -2.0  # whitened: in prior standard deviations
    return vae.inverse_transform(z)


def words_of(high, low, words, n_words=6):
    """Words whose expected count rises the most; the 0.1 keeps words out that are rare anyway."""
    ratio = (high + 0.1) / (low + 0.1)
    return [f"{words[w]} {ratio[w]:.0f}x" for w in np.argsort(-ratio)[:n_words] if ratio[w] > 1.5]


def furthest_out(code, labels):
    return max(np.unique(labels), key=lambda label: code[labels == label].mean())


# %%
# A count likelihood takes the sparse matrix as it is.


def main():
    start = time.perf_counter()
    if SHARED.exists():
        X, words, labels = load_articles()
        n_components = 10
    else:
        X, words, labels = plant_topics()
        n_components = len(PLANTED) - 1
        print("No ../shared/data here: a synthetic bag of words with planted topics")
    print(f"{X.shape[0]} articles, {X.shape[1]} words, {X.nnz / np.prod(X.shape):.1%} not zero\n")

    # Held-out articles are better explained than by "poisson", whose variance is the mean: their
    # ELBO is -461 against -500 nats an article (benchmarks/counts.py). Words come in bursts.
    vae = VAETransformer(
        n_components, likelihood="negative_binomial", whiten=True, random_state=0
    ).fit(X)
    Z = vae.transform(X)
    for component in np.flatnonzero(Z.any(axis=0)):
        high, low = ends(vae, component)
        print(f"component {component + 1}, {vae.kl_per_component_[component]:.1f} nats")
        for sign, one, other in [(1, high, low), (-1, low, high)]:
            site = furthest_out(sign * Z[:, component], labels)
            print(
                f"  {'+' if sign > 0 else '-'}  {site:20}  {', '.join(words_of(one, other, words))}"
            )
    print(f"\n{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
