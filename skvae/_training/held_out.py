"""What held-out rows say of training's objective, with one fixed noise."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .._model.vae import VAE, Passed
from .._table.statistics import row_chunks
from .plan import Plan, objective
from .rows import Batch, Rows

VALIDATION_DRAWS = 2048  # rows times samples: a small held-out part gets more samples a row
KEPT_NUMBERS = 2**22  # of the networks' answers: so many need not be computed twice

Answers = Iterable[tuple[Batch, Passed]]


def pairs_for(n_rows: int, plan: Plan) -> int:
    """Return how many pairs of opposite samples so many held-out rows get each."""
    n_pairs = max(1, min(8, VALIDATION_DRAWS // (2 * n_rows)))
    return max(n_pairs, (plan.n_samples + 1) // 2) if plan.objective == "iwae" else n_pairs


class HeldOut:
    """Held-out rows with one fixed noise, in antithetic pairs, so that epochs compare.

    They are judged by what training climbs: the ELBO with its beta and free bits, or the
    importance-weighted bound. By the ELBO alone, the start would win against any other beta.
    """

    def __init__(
        self, rows: Rows, n_components: int, plan: Plan, generator: torch.Generator
    ) -> None:
        self.plan = plan
        size = (pairs_for(len(rows), plan), len(rows), n_components)
        weight = rows.weight
        eps = torch.randn(size, generator=generator, dtype=weight.dtype, device=weight.device)
        self.rows = rows
        self.share = weight.double() / max(len(rows), 1)  # sums to 1
        self.eps = torch.cat([eps, -eps])
        self.at_start: Tensor | None = None
        self.kl = math.nan  # mean KL divergence at the last measure

    @torch.no_grad()
    def measure(self, vae: VAE, *, calibrate: bool = False) -> tuple[float, float]:
        """Return the mean objective, and the standard error of its gain over the first measure.

        ``calibrate`` sets the module's noise by these rows before.
        """
        answers = self._answers(vae)
        if calibrate:
            few = self.eps[..., 0].numel() * vae.n_features <= KEPT_NUMBERS
            answers = list(answers) if few else answers
            self._calibrate(vae, answers)
            answers = answers if few else self._answers(vae)
        return self._measured(vae, answers)

    def _measured(self, vae: VAE, answers: Answers) -> tuple[float, float]:
        terms = (vae.terms(x, observed, passed) for (x, observed, _), passed in answers)
        parts = [(objective(each, self.plan, progress=1.0), each.kl.sum(-1)) for each in terms]
        nothing = (self.share[:0], self.share[:0])
        bound, kl = (torch.cat(part).double() for part in zip(*parts, nothing, strict=True))
        if self.at_start is None:
            self.at_start = bound
        gain = bound - self.at_start
        sums = self._added((self.share * torch.stack([bound, kl, gain])).sum(1))
        self.kl = float(sums[1])
        spread = self.share * (gain - sums[2])
        if self.rows.copies is not None:  # the squares of so many equal rows add up
            spread = spread / torch.sqrt(self.rows.copies.double())
        return float(sums[0]), float(self._added(spread.square().sum()).sqrt())

    def _calibrate(self, vae: VAE, answers: Answers) -> None:
        """Set the noise by what is left over on rows that were not trained on.

        On training rows it is too small, and clipped gradients let it ignore the wild ones.
        """
        total = torch.zeros(vae.n_features, dtype=torch.float64, device=self.eps.device)
        count = torch.zeros_like(total)
        for (x, observed, weight), passed in answers:
            left = (vae.likelihood.features(x) - passed.raw).square().mean(0)  # (N, P)
            seen = weight[:, None].expand_as(left)
            if observed is not None:
                seen = seen * observed[:, vae.encoder.column]
            total += (left * seen).sum(0)
            count += seen.sum(0)
        total, count = self._added(torch.stack([total, count]))
        vae.likelihood.set_noise(total / count.clamp(min=1e-9), count)

    def _added(self, sums: Tensor) -> Tensor:
        """Return sums over the rows, of all processes where several hold them."""
        return sums

    def _answers(self, vae: VAE) -> Answers:
        """Pass the rows through the networks, in parts that fit a processor's cache."""
        for chunk in row_chunks(len(self.rows), 4 * vae.n_features):
            batch = self.rows[chunk]
            yield batch, vae.passed(batch.x, batch.observed, self.eps[:, chunk])
