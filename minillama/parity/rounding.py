"""How far rounding may take a result from the truth: float64 values that carry a bound of their own error.

    fl(a op b) = (a op b)(1 + delta), |delta| <= u     u = 2^-24 in fp32, 2^-11 in fp16, 2^-8 in bf16: half of eps
    a sum of n products in any order, fused or not:    |error| <= gamma(n) sum |a_i b_i|

Each operation passes on the bounds of its operands and adds its own rounding: running error analysis (N. J. Higham,
Accuracy and Stability of Numerical Algorithms, 2nd edition, sections 2.2, 3.1 and 3.3). That knows nothing of any
CPU, of the order of a sum or of another program's luck, so that a bound is the same everywhere.
"""

import math
from dataclasses import dataclass

import torch

FP32 = 2.0**-24  # unit roundoff
SPREAD = 4  # of a sum's rounding errors, see `gamma`
EXP_ERROR = 4 * FP32  # exp2f and expf are right to 2 units in the last place (CUDA programming guide; glibc: 1)


def unit_of(dtype):
    """The unit roundoff u: the largest relative error of one rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def gamma(n, unit=FP32):
    """A bound of the relative error of n roundings in a row: n u / (1 - n u) (Higham, lemma 3.1), and for long sums
    SPREAD sqrt(n) instead of n.

    Errors of both signs grow like sqrt(n): the product of n factors 1 + delta, the deltas independent with mean 0, is
    within exp(s sqrt(n) u) of 1 but for a chance of 2 exp(-s^2 / 2), however they are distributed (N. J. Higham and
    T. Mary, SIAM J. Sci. Comput. 41(5), 2019, theorem 2.4). Evenly spread in +-u, s = 4 is seven of their standard
    deviations: a chance of 1e-10 an element. The inputs must be random numbers, as all of ours are.
    """
    total = min(n, SPREAD * math.sqrt(n)) * unit
    return total / (1 - total)


@dataclass(frozen=True)
class Bounded:
    """`value`, as exact arithmetic has it, and a bound for how far a computed one may be off it, both float64.

    dtype: to which the result of an operation is rounded. Sums are kept in fp32 within one, whatever the dtype.
    """

    value: torch.Tensor
    error: torch.Tensor
    dtype: torch.dtype = torch.float32

    def result(self, value, error):
        """What an operation gives: the error passed on to it, and one rounding more."""
        return Bounded(value, error, self.dtype).stored(self.dtype)

    def stored(self, dtype):
        """Rounded once to dtype: by a unit of what is there, or half a step of the smallest numbers; in fp32, as which
        everything is computed, these may be flushed to 0."""
        unit = unit_of(dtype)
        lost = max(torch.finfo(dtype).smallest_normal * unit, torch.finfo(torch.float32).smallest_normal)
        return Bounded(self.value, self.error + unit * (self.value.abs() + self.error) + lost, self.dtype)

    def __mul__(self, other):
        if not isinstance(other, Bounded):  # a constant, itself rounded
            other = Bounded(torch.tensor(other, dtype=torch.float64), torch.tensor(abs(other) * FP32))
        return self.result(self.value * other.value,
                           self.value.abs() * other.error + self.error * (other.value.abs() + other.error))

    def __add__(self, other):
        return self.result(self.value + other.value, self.error + other.error)

    def __sub__(self, other):
        return self.result(self.value - other.value, self.error + other.error)

    def __matmul__(self, other):
        """Sums of n products in fp32; where the result stays fp32, the last rounding is one of the n. Multiples of 1/8
        whose products, multiples of 1/64, sum up to 2^18 at most fit 24 bits: nothing is rounded."""
        largest = (self.value.abs() + self.error) @ (other.value.abs() + other.error)
        few = all(torch.equal((8 * x.value).round(), 8 * x.value) and not x.error.any() for x in (self, other))
        unit = 0 if few and (largest <= 2**18).all() else gamma(self.value.shape[-1])
        error = (1 + unit) * largest - self.value.abs() @ other.value.abs()
        found = Bounded(self.value @ other.value, error, self.dtype)
        return found if self.dtype == torch.float32 else found.stored(self.dtype)

    def sum(self):
        """Over the last dimension, which is kept: the products with 1."""
        return self @ exact(self.value.new_ones(self.value.shape[-1], 1))

    def softmax(self, seen, more=0.0):
        """exp(x_j) / sum exp(x_i) over the last dimension, of what is seen (a row that sees nothing is 0).

        more: an error of the exponents beside their own. One that is off by e makes its exponential wrong by the factor
        exp(e), and the sum by the mean of these factors, weighted by the result.
        """
        value = self.value.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0)
        factor = (self.error + more + EXP_ERROR).where(seen, 0).exp()
        factor = factor * (value * factor).sum(-1, keepdim=True) * (1 + gamma(seen.shape[-1]))
        return self.result(value, value * (factor - 1)).moved(lambda x: x.where(seen, 0))

    def moved(self, move):
        """The same numbers elsewhere, by move(tensor)."""
        return Bounded(move(self.value), move(self.error), self.dtype)

    @property
    def T(self):
        return self.moved(lambda x: x.mT)


def exact(x, dtype=torch.float32):
    """A tensor of inputs, which are what they are; what is computed from them is rounded to dtype."""
    return Bounded(x.double(), torch.zeros_like(x, dtype=torch.float64), dtype)
