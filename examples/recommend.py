"""
Recommend items to users
========================

Recommendations: what users chose among items, in a sparse matrix, and what they may like next.

The likelihood of all columns together is a multinomial: how a user's choices are shared out among
the items. A user who was not there in the fit needs no new one: the encoder reads what they chose,
and the decoder ranks what they did not. The choices are synthetic, of readers with mixed tastes.
"""

import time

import numpy as np
from scipy.sparse import csr_matrix

from skvae import VAETransformer

GENRES = {
    "crime": ["Harbour", "Knife", "Alibi", "Witness", "Ransom", "Verdict", "Cellar", "Informer"],
    "space": ["Orbit", "Comet", "Pulsar", "Airlock", "Colony", "Eclipse", "Probe", "Horizon"],
    "garden": ["Roses", "Compost", "Orchard", "Herbs", "Meadow", "Pruning", "Seedlings", "Pond"],
    "history": ["Empire", "Siege", "Treaty", "Dynasty", "Crusade", "Archive", "Abbey", "Galleon"],
}
BOOKS = np.array([book for books in GENRES.values() for book in books])


def draw_readers(n_readers=1500):
    """What each reader chose: 4 to 12 books, most of them from one or two genres."""
    rng = np.random.default_rng(0)
    popularity = rng.gamma(2.0, size=len(BOOKS))
    taste = rng.dirichlet(np.full(len(GENRES), 0.25), n_readers)
    weight = popularity * (0.03 + np.repeat(taste, len(BOOKS) // len(GENRES), axis=1))
    X = np.zeros((n_readers, len(BOOKS)))
    for row, p in zip(X, weight / weight.sum(axis=1, keepdims=True), strict=True):
        row[rng.choice(len(BOOKS), rng.integers(4, 13), replace=False, p=p)] = 1.0
    return csr_matrix(X)


# %%
# The decoder gives each item its share of a row's total. What a user already has is left out.


def recommended(vae, shown, n_items=4):
    """The items of each row that are expected most of what it does not hold yet."""
    expected = vae.inverse_transform(vae.transform(shown))
    expected[shown.nonzero()] = -np.inf
    return np.argsort(-expected, axis=1)[:, :n_items]


def hit_rate(items, hidden):
    """How often one of the recommended items is the one that was hidden."""
    return np.mean([one in row for one, row in zip(hidden, items, strict=True)])


# %%
# One book of each new reader is hidden, and to be found.


def main():
    start = time.perf_counter()
    X = draw_readers()
    train, new = X[:1200], X[1200:]
    vae = VAETransformer(3, likelihood="multinomial", random_state=0).fit(train)
    print(f"{train.shape[0]} readers, {train.shape[1]} books, {train.nnz} choices\n")

    # One book of each new reader is hidden, and to be found among four recommended ones.
    rng = np.random.default_rng(1)
    hidden = np.array([rng.choice(new[row].indices) for row in range(new.shape[0])])
    shown = new.tolil()
    shown[np.arange(new.shape[0]), hidden] = 0.0
    shown = shown.tocsr()
    shown.eliminate_zeros()
    items = recommended(vae, shown)
    for row in range(4):
        print(f"chose        {', '.join(BOOKS[shown[row].indices])}")
        print(f"recommended  {', '.join(BOOKS[items[row]])}    (hidden: {BOOKS[hidden[row]]})\n")

    count = np.asarray(train.sum(axis=0)).ravel() - 1e9 * (shown.toarray() > 0.0)
    popular = np.argsort(-count, axis=1)[:, :4]
    print(f"The hidden book is among the four: {hit_rate(items, hidden):.0%} of the readers,")
    print(f"and among the four most popular ones: {hit_rate(popular, hidden):.0%}.")
    print(f"\n{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
