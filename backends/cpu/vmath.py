"""Functions of float32 vectors as polynomials; LLVM's own become scalar library calls."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from .emit import exp, f32, fma, let, splat
from .kernel import Expr

# tanh(x) = x P(x^2) / Q(x^2) and erf likewise, as in XLA (llvm_ir/math_ops.cc, Apache-2.0).
_TANH_LIMIT = 7.90531110763549805
_TANH_P = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_ERF_LIMIT = 4.0
_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def clamp(x: Expr, limit: float, lanes: int) -> Expr:
    """x within -limit .. limit; NaN stays NaN."""
    return let(tirx.min(splat(f32(limit), lanes), let(tirx.max(splat(f32(-limit), lanes), x))))


def _polynomial(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    result = splat(f32(coefficients[0]), lanes)
    for c in coefficients[1:]:
        result = fma(result, x, splat(f32(c), lanes))
    return let(result)


def _odd_rational(x: Expr, limit: float, p: Sequence[float], q: Sequence[float], lanes: int) -> Expr:
    x = clamp(x, limit, lanes)
    square = let(x * x)
    return let(let(x * _polynomial(square, p, lanes)) / _polynomial(square, q, lanes))


def tanh(x: Expr, lanes: int) -> Expr:
    """The hyperbolic tangent, relative error 4e-7."""
    return _odd_rational(x, _TANH_LIMIT, _TANH_P, _TANH_Q, lanes)


def erf(x: Expr, lanes: int) -> Expr:
    """The error function, relative error 4e-7."""
    return _odd_rational(x, _ERF_LIMIT, _ERF_P, _ERF_Q, lanes)


def sigmoid(x: Expr, lanes: int) -> Expr:
    """1 / (1 + e^-x)."""
    one = splat(f32(1), lanes)
    return let(one / let(one + exp(let(splat(f32(0), lanes) - x), lanes)))
