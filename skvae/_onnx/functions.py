"""What no single node computes, in float64: functions of traced tensors by other such functions."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from .operators import where_true as where_true  # which also lets the operators be known
from .traced import Traced, call, composed, named

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
SHIFT = 8  # from which on Stirling's series is exact to the last digits
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)

# Rational approximations of Cody (1969) as in the Cephes library (Moshier 1989), falling powers:
# erf(x) / x by x^2 up to 1, erfc(x) e^(x^2) from 1 to 8, and from there on.
ERF = (
    (
        9.60497373987051638749e0,
        9.00260197203842689217e1,
        2.23200534594684319226e3,
        7.00332514112805075473e3,
        5.55923013010394962768e4,
    ),
    (
        1.0,
        3.35617141647503099647e1,
        5.21357949780152679795e2,
        4.59432382970980127987e3,
        2.26290000613890934246e4,
        4.92673942608635921086e4,
    ),
)
NEAR_TAIL = (
    (
        2.46196981473530512524e-10,
        5.64189564831068821977e-1,
        7.46321056442269912687e0,
        4.86371970985681366614e1,
        1.96520832956077098242e2,
        5.26445194995477358631e2,
        9.34528527171957607540e2,
        1.02755188689515710272e3,
        5.57535335369399327526e2,
    ),
    (
        1.0,
        1.32281951154744992508e1,
        8.67072140885989742329e1,
        3.54937778887819891062e2,
        9.75708501743205489753e2,
        1.82390916687909736289e3,
        2.24633760818710981792e3,
        1.65666309194161350182e3,
        5.57535340817727675546e2,
    ),
)
FAR_TAIL = (
    (
        5.64189583547755073984e-1,
        1.27536670759978104416e0,
        5.01905042251180477414e0,
        6.16021097993053585195e0,
        7.40974269950448939160e0,
        2.97886665372100240670e0,
    ),
    (
        1.0,
        2.26052863220117276590e0,
        9.39603524938001434673e0,
        1.20489539808096656605e1,
        1.70814450747565897222e1,
        9.60896809063285878198e0,
        3.36907645100081516050e0,
    ),
)


def _polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def _ratio(x: Any, pair: Sequence[Sequence[float]]) -> Any:
    return _polynomial(x, pair[0]) / _polynomial(x, pair[1])


# -- error functions and logarithms of gamma functions --------------------------------------------


@composed("erf")
def erf(x: Any) -> Any:
    if x.dtype == torch.float32:
        return call("short_erf", torch.erf, (x,), {})
    near = x.clamp(-1.0, 1.0)
    outside = (1.0 - _tail(x.abs())) * x.sign()
    return torch.where(x.abs() < 1.0, near * _ratio(near.square(), ERF), outside)


@composed("erfc")
def erfc(x: Any) -> Any:
    near = x.clamp(-1.0, 1.0)
    tail = _tail(x.abs())
    outside = torch.where(x < 0.0, 2.0 - tail, tail)
    return torch.where(x.abs() < 1.0, 1.0 - near * _ratio(near.square(), ERF), outside)


def _tail(x: Any) -> Any:
    """Return erfc(x) from 1 on."""
    near, far = x.clamp(1.0, 8.0), x.clamp(8.0, 40.0)
    ratio = torch.where(x < 8.0, _ratio(near, NEAR_TAIL), _ratio(far, FAR_TAIL))
    return torch.exp(-x.square()) * ratio


@composed("special_ndtr")
def ndtr(x: Any) -> Any:
    return 0.5 * erfc(-math.sqrt(0.5) * x)


@composed("lgamma", "special_gammaln")
def lgamma(x: Any) -> Any:
    """Return log G(x), x > 0: by Stirling's series, after a step away from 0 for small x."""
    small = x < SHIFT
    product = torch.where(small, x, 1.0)
    for step in range(1, SHIFT):
        product = product * torch.where(small, x + step, 1.0)
    far = torch.where(small, x + SHIFT, x)
    inverse = 1.0 / far
    series = _polynomial(inverse.square(), STIRLING[::-1]) * inverse
    return (far - 0.5) * far.log() - far + HALF_LOG_2PI + series - product.log()


# -- elementwise ----------------------------------------------------------------------------------


@composed("square")
def square(x: Any) -> Any:
    return x * x


@composed("rsqrt")
def rsqrt(x: Any) -> Any:
    return 1.0 / x.sqrt()


@composed("log1p")
def log1p(x: Any) -> Any:
    return torch.log(1.0 + x)


@composed("expm1")
def expm1(x: Any) -> Any:
    return torch.exp(x) - 1.0


@composed("sigmoid")
def sigmoid(x: Any) -> Any:
    """Return what a node would, too, but whose small values have no digits."""
    return 1.0 / (1.0 + torch.exp(-x))


@composed("log_sigmoid", "logsigmoid")
def logsigmoid(x: Any) -> Any:
    return -torch.nn.functional.softplus(-x)


@composed("gelu")
def gelu(x: Any, **_: Any) -> Any:
    return x * (0.5 * (1.0 + torch.erf(x * math.sqrt(0.5))))


@composed("silu")
def silu(x: Any, **_: Any) -> Any:
    return x * torch.sigmoid(x)


@composed("logaddexp")
def logaddexp(a: Any, b: Any) -> Any:
    return torch.maximum(a, b) + log1p(torch.exp(-(a - b).abs()))


@composed("logit", "special_logit")
def logit(x: Any) -> Any:
    return torch.log(x) - torch.log(1.0 - x)


@composed("mod", "remainder")
def remainder(a: Any, b: Any) -> Any:
    if a.dtype.is_floating_point:
        return a - b * torch.floor(a / b)
    return call("mod_of_integers", torch.remainder, (a, b), {})


@composed("ne")
def differs(a: Any, b: Any) -> Any:
    return ~(a == b)


@composed("isfinite")
def isfinite(x: Any) -> Any:
    return ~(x.isnan() | x.isinf())


@composed("nan_to_num")
def nan_to_num(x: Any, nan: float = 0.0, posinf: Any = None, neginf: Any = None) -> Any:
    limits = torch.finfo(x.dtype)
    x = torch.where(x.isnan(), nan, x)
    x = torch.where(x == math.inf, limits.max if posinf is None else posinf, x)
    return torch.where(x == -math.inf, limits.min if neginf is None else neginf, x)


@composed("addcmul")
def addcmul(x: Any, a: Any, b: Any, *, value: float = 1.0) -> Any:
    return x + value * (a * b)


# -- over an axis ---------------------------------------------------------------------------------


@composed("any")
def any_of(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return x.long().amax(dim, keepdim) > 0


@composed("all")
def all_of(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return x.long().amin(dim, keepdim) > 0


@composed("argmin")
def argmin(x: Any, dim: int = -1) -> Any:
    return (-x).argmax(dim)


@composed("logsumexp")
def logsumexp(x: Any, dim: int, keepdim: bool = False) -> Any:
    """Return log sum exp, also where all are minus infinity."""
    largest = x.amax(dim, True)
    base = torch.where(largest.isinf(), 0.0, largest)
    total = torch.log(torch.exp(x - base).sum(dim, True)) + base
    return total if keepdim else total.squeeze(dim)


@composed("linalg_vector_norm")
def vector_norm(x: Any, ord: float = 2, dim: Any = None, keepdim: bool = False) -> Any:
    assert ord == 2
    return x.square().sum(dim, keepdim).sqrt()


@composed("index_add")
def index_add(x: Any, dim: int, index: Any, rows: Any) -> Any:
    """Add rows at places that are not equal."""
    return x.index_copy(dim, index, x.index_select(dim, index) + rows)


@composed("diff")
def diff(x: Any, dim: int = -1) -> Any:
    places = torch.arange(x.shape[dim])
    return x.index_select(dim, places[1:]) - x.index_select(dim, places[:-1])


@composed("pad")
def pad(x: Any, sizes: Sequence[int], **_: Any) -> Any:
    before, after = sizes
    parts = [x.new_zeros((*x.shape[:-1], n)) for n in (before, after)]
    return torch.cat([parts[0], x, parts[1]], -1)


@composed("searchsorted")
def searchsorted(ends: Any, values: Any, **_: Any) -> Any:  # (D, E), (D, N) -> (D, N)
    return (ends[..., None, :] < values[..., :, None]).sum(-1)


def look_up(table: Any, index: Any) -> Any:
    """Return the entries of a constant list at places of any shape."""
    (found,) = index.graph.node("Gather", [named(index.graph, table), index.name], axis=0)
    shape = (*index.shape, *table.shape[1:])
    return Traced(index.graph, found, torch.empty(shape, dtype=table.dtype, device="meta"))
