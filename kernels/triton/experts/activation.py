"""Activations, and the joining of a gate with its value, in float32.

What the epilogue of every expert product calls; it is no kernel.

Nearly every expert in use is SwiGLU or one of its relatives, and those are one formula with four
numbers. With g = min(gate, limit) and u = clamp(value, -limit, limit):

    (u + shift) * g * sigmoid(linear * g + cubic * g^3)

    silu             linear 1, cubic 0, no limit, shift 0
    gelu-tanh        linear 2 sqrt(2/pi), cubic 0.044715 times that, no limit, shift 0
                     (x/2 (1 + tanh z) is x sigmoid(2 z))
    swiglu-clamped   linear alpha, cubic 0, its limit, shift 1

So the fast kernels hold this formula and no branch ("logistic"). The rest (none, relu, exact GELU,
sigmoid) and ungated experts are chosen by a code at run time, the same for a whole launch
("coded"): seven activations unrolled over a tile's registers make a cubin of a megabyte, so only
small tiles have them. Products without an activation are "identity".
"""

import triton
import triton.language as tl

# What a kernel holds: the constant ACTIVATION.
IDENTITY = tl.constexpr(0)
LOGISTIC = tl.constexpr(1)
CODED = tl.constexpr(2)

# The run-time codes of CODED kernels, part of the ABI. `logistic` is the formula above with its four numbers.
CODES = {"none": 0, "relu": 1, "gelu": 2, "sigmoid": 3, "logistic": 4}
RELU = tl.constexpr(CODES["relu"])
GELU = tl.constexpr(CODES["gelu"])
SIGMOID = tl.constexpr(CODES["sigmoid"])
LOGISTIC_CODE = tl.constexpr(CODES["logistic"])

LOG2_E = tl.constexpr(1.4426950408889634)
SQRT_HALF = tl.constexpr(0.7071067811865476)

TANH_LINEAR = 1.5957691216057308
TANH_CUBIC = 0.044715 * TANH_LINEAR


# (code, linear, cubic, limit, shift) of the activations of src/execution/operators.ts; None is no limit (infinity),
# a string the activation's own parameter.
KINDS = {
    "silu": (CODES["logistic"], 1.0, 0.0, None, 0.0),
    "gelu-tanh": (CODES["logistic"], TANH_LINEAR, TANH_CUBIC, None, 0.0),
    "swiglu-clamped": (CODES["logistic"], "alpha", 0.0, "limit", 1.0),
    "none": (CODES["none"], 0.0, 0.0, None, 0.0),
    "relu": (CODES["relu"], 0.0, 0.0, None, 0.0),
    "gelu": (CODES["gelu"], 0.0, 0.0, None, 0.0),
    "sigmoid": (CODES["sigmoid"], 0.0, 0.0, None, 0.0),
}


@triton.jit
def _logistic(x, linear, cubic):
    """x sigmoid(linear x + cubic x^3): 1 / (1 + 2^y) by the two instructions there are for it, with an error of some 2^-22."""
    y = x * (linear * -LOG2_E + cubic * -LOG2_E * x * x)
    return x * tl.inline_asm_elementwise(
        "{ .reg .f32 e; ex2.approx.ftz.f32 e, $1; add.f32 e, e, 0f3F800000; rcp.approx.ftz.f32 $0, e; }",
        "=f,f",
        [y],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _coded(x, code, linear, cubic):
    if code == LOGISTIC_CODE:
        x = _logistic(x, linear, cubic)
    elif code == RELU:
        # A comparison, so that NaN stays NaN.
        x = tl.where(x < 0, 0.0, x)
    elif code == GELU:
        x = 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))
    elif code == SIGMOID:
        x = tl.sigmoid(x)
    return x


@triton.jit
def activate(x, code, linear, cubic, ACTIVATION: tl.constexpr):
    """f(x) of an ungated product."""
    if ACTIVATION == IDENTITY:
        return x
    elif ACTIVATION == LOGISTIC:
        return _logistic(x, linear, cubic)
    else:
        return _coded(x, code, linear, cubic)


@triton.jit
def join_gate(gate, value, code, linear, cubic, limit, shift, ACTIVATION: tl.constexpr):
    """f(gate) * value, of a gated product."""
    gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
    value = tl.minimum(value, limit, propagate_nan=tl.PropagateNan.ALL)
    value = tl.maximum(value, -limit, propagate_nan=tl.PropagateNan.ALL) + shift
    return activate(gate, code, linear, cubic, ACTIVATION) * value
