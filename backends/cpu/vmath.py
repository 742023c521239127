"""Functions of float32 vectors as polynomials; LLVM's own become scalar library calls."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from .emit import exp, f32, fma, let, splat
from .kernel import Expr
from .tiles import larger

# tanh(x) = x P(x^2) / Q(x^2), as in XLA (llvm_ir/math_ops.cc, Apache-2.0).
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
# e^(x^2/2) (1 - Phi(x)) = t G(t) with t = 1 / (1 + 0.35 x), for 0 <= x <= 16; fitted to 3e-8 in float64.
_TAIL_LIMIT = 16.0
_TAIL_G = (
    -0.029165025800466537,
    0.1440662294626236,
    -0.25591325759887695,
    0.15940611064434052,
    -0.02327307127416134,
    0.10557877272367477,
    0.11981447786092758,
    0.1398644745349884,
    0.13962124288082123,
)


def clamp(x: Expr, limit: float, lanes: int) -> Expr:
    """x within -limit .. limit; NaN stays NaN."""
    return let(tirx.min(splat(f32(limit), lanes), let(tirx.max(splat(f32(-limit), lanes), x))))


def _polynomial(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    result = splat(f32(coefficients[0]), lanes)
    for c in coefficients[1:]:
        result = fma(result, x, splat(f32(c), lanes))
    return let(result)


def tanh(x: Expr, lanes: int) -> Expr:
    """The hyperbolic tangent, relative error 4e-7."""
    x = clamp(x, _TANH_LIMIT, lanes)
    square = let(x * x)
    return let(let(x * _polynomial(square, _TANH_P, lanes)) / _polynomial(square, _TANH_Q, lanes))


def gelu(x: Expr, lanes: int) -> Expr:
    """x * Phi(x) = max(x, 0) - |x| * (1 - Phi(|x|)), absolute error 1e-7 times max(1, |x|)."""
    zero, one = splat(f32(0), lanes), splat(f32(1), lanes)
    size = let(tirx.min(splat(f32(_TAIL_LIMIT), lanes), larger(x, let(zero - x))))
    t = let(one / fma(size, splat(f32(0.35), lanes), one))
    density = exp(let(let(size * size) * splat(f32(-0.5), lanes)), lanes)
    tail = let(let(density * t) * _polynomial(t, _TAIL_G, lanes))
    return fma(let(zero - size), tail, larger(zero, x))


def sigmoid(x: Expr, lanes: int) -> Expr:
    """1 / (1 + e^-x)."""
    one = splat(f32(1), lanes)
    return let(one / let(one + exp(let(splat(f32(0), lanes) - x), lanes)))
