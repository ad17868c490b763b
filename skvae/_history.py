"""How a fit got to its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, nan


@dataclass(frozen=True)
class History:
    """The epochs of a fit, and which was kept; bounds in nats a row and original units."""

    n_epochs: int
    best_epoch: int
    losses: list[float]
    held_out: list[float]
    cut_short: bool = False  # the user's cap came while the held-out bound was still rising
    undone: str = ""  # which epochs diverged and were taken again, slower; for a warning
    interrupted: bool = False  # by the user
    # As watched, from the start on: below 500 rows means over the folds. Held-out ones: held_out.
    bounds: Sequence[float] = ()  # of the training rows; nan at the start
    kl: Sequence[float] = ()  # mean KL divergence of the training rows, nats; nan at the start
    held_out_kl: Sequence[float] = ()  # of the held-out rows

    @property
    def why_the_start(self) -> str:
        """Say why no epoch was kept; "" if one was, or if there was no choice."""
        held_out = [bound for bound in self.held_out if not isnan(bound)]
        if held_out and self.n_epochs == 0 and not self.interrupted:
            return "no epoch was begun, as the rows show nothing that hidden layers could learn"
        if self.best_epoch or len(held_out) < 2:
            return ""
        gain = max(held_out[1:]) - held_out[0]
        if gain <= 0.0:
            return f"none of {self.n_epochs} epochs was better on rows that were held out"
        return (
            f"the best of {self.n_epochs} epochs gained {gain:.2g} nats a row on rows that were "
            "held out, less than two standard errors"
        )

    def after(self, past: "History") -> "History":
        """Return the history of both, of a fit that went on from the end of another.

        Epochs that held out no rows have nan in the curve of those that did.
        """
        number = past.n_epochs
        before, now = past.held_out, self.held_out
        if before or now:
            before = before or [nan] * number + now[:1]
            now = now[1:] or [nan] * self.n_epochs
        return replace(
            self,
            n_epochs=number + self.n_epochs,
            best_epoch=number + self.best_epoch if self.best_epoch else past.best_epoch,
            losses=[*past.losses, *self.losses],
            held_out=[*before, *now],
            bounds=joined(past.bounds, self.bounds),
            kl=joined(past.kl, self.kl),
            held_out_kl=joined(past.held_out_kl, self.held_out_kl),
        )


def joined(past: Sequence[float], now: Sequence[float]) -> list[float]:
    """Return a curve after another: where one ended the next starts."""
    return [*past, *(now[1:] if past else now)]
