"""Names of likelihoods, and what each of them implies for a column."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._table.support import Kinds, Nature, Support
from ._counts import NegativeBinomial, Poisson
from ._levels import Bernoulli, Categorical, Ordinal
from ._likelihood import Likelihood
from ._multinomial import Multinomial
from ._normal_scores import NormalScores
from ._real import Gaussian, LogNormal, StudentT

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "student_t": StudentT,
    "log_normal": LogNormal,
    "ordinal": Ordinal,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "normal_scores": NormalScores,
    "multinomial": Multinomial,
}
NUMBERS: tuple[Nature, ...] = ("number", "heavy_tailed")


def likelihood_of(name: Any, noise: str) -> Likelihood:
    """Return the likelihood that a name stands for; an instance stands for itself."""
    return name if isinstance(name, Likelihood) else LIKELIHOODS[name].named(noise)


def kind_of(name: Any) -> type[Likelihood]:
    """Return the class of a name or an instance."""
    return type(name) if isinstance(name, Likelihood) else LIKELIHOODS[name]


def name_of(likelihood: Any) -> str:
    """Return the name of a likelihood; of one that has none, that of its class."""
    if isinstance(likelihood, str):
        return likelihood
    names = {kind: name for name, kind in LIKELIHOODS.items()}
    return names.get(type(likelihood), type(likelihood).__name__.lower())


def is_open(asked: Any) -> bool:
    """Whether what a column looks like is to choose, for numbers or for all."""
    return isinstance(asked, str) and asked in ("auto", "normal_scores")


def kinds_of(
    asked: Sequence[Any], natures: Sequence[Nature], noise: str, n_levels: Sequence[int]
) -> Kinds:
    """Decide each column's likelihood: by what it looks like where "auto" was asked for."""
    by_nature = {kind.automatic_for: name for name, kind in LIKELIHOODS.items()}
    automatic = [is_open(one) for one in asked]
    chosen = [
        by_nature[nature] if auto and not (one == "normal_scores" and nature in NUMBERS) else one
        for one, nature, auto in zip(asked, natures, automatic, strict=True)
    ]
    # Equal ones are evaluated together, whatever they were called: as one, so that all agree.
    first: dict[Likelihood, Any] = {}
    called = {
        one: first.setdefault(likelihood_of(one, noise), one) for one in dict.fromkeys(chosen)
    }
    likelihoods = tuple(called[one] for one in chosen)
    return Kinds(
        likelihoods=likelihoods,
        names=tuple(name_of(one) for one in likelihoods),
        supports=tuple(supports_of(likelihoods)),
        automatic=np.array(automatic),
        sees_numbers=_sees_numbers(likelihoods),
        n_levels=tuple(n_levels),
    )


def check_joint(asked: Sequence[Any], names: Sequence[str]) -> None:
    """Raise a ValueError if a column is alone in sharing its row's total."""
    joint = [one for one in asked if not is_open(one) and kind_of(one).is_joint]
    for one in dict.fromkeys(joint):
        if joint.count(one) == 1:
            raise ValueError(
                f"The likelihood {name_of(one)!r} says how columns share their row's total, but "
                f"column {names[list(asked).index(one)]} alone has it. Name it for all columns "
                "that count things of one kind, or use likelihood='poisson'."
            )


def supports_of(likelihoods: Sequence[Any]) -> list[Support]:
    """Return what each column's likelihood gives a density to; "auto", undecided, asks nothing."""
    known: dict[Any, Support] = {"auto": Gaussian.support}
    for one in set(likelihoods) - {"auto"}:
        known[one] = (one if isinstance(one, Likelihood) else LIKELIHOODS[one]).support
    return [known[one] for one in likelihoods]


def _sees_numbers(likelihoods: Sequence[Any]) -> bool:
    """Whether the encoder sees all columns' numbers as they are, one feature a column."""
    return all(
        kind_of(one).features is Likelihood.features
        and kind_of(one).columns_of_features is Likelihood.columns_of_features
        for one in set(likelihoods)
    )
