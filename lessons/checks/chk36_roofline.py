"""Checks of exercise 36: intensity and roof by their formulas, the first batch found again by trying every one, and the
speed of a server from its two times."""

from minillama.course.exercise import close

HINTS = {
    "intensity": (
        "A multiplication and an addition for each weight and token: two FLOPs.",
        "The weight moves once for all M rows. x has M K numbers, y has M N.",
        "weight_bytes belongs to the weight alone, number_bytes to x and y.",
    ),
    "roof": (
        "Two limits hold at the same time. Which of the two decides?",
        "A byte brings so many FLOPs; the memory brings so many bytes a second. Multiply.",
    ),
    "first_batch": (
        "A batch is whole: take the first one at or behind the point where both roofs meet.",
        "x and y grow with M too: write the intensity with both kinds of bytes, put in the ridge, solve for M.",
        "If even an endless batch stays left of the ridge, the result is None.",
        "One token may be enough already: then the first batch is 1, and not 0.",
    ),
    "tokens": (
        "Each text has a cache of its own: a batch of 8 reads 8 of them. The weights are read once for all.",
        "Both go on at the same time: the longer one decides, not their sum.",
        "A step of a batch makes as many tokens as it has texts.",
    ),
}


def check_intensity(learner):
    for *case, wanted, hint in ((1, 2, 2, 2, 2, 8 / 16, 0), (3, 5, 7, 4, 4, 210 / 284, 1),
                                (16, 64, 32, 0.5, 4, 65536 / 7168, 2)):
        close(f"intensity{tuple(case)}", learner.intensity(*case), wanted, 1e-9, hint=hint)


def check_roof(learner):
    for I, wanted, hint in ((1.0, 100.0, 0), (0.5, 50.0, 1), (4.0, 400.0, 0), (10.0, 1000.0, 0), (300.0, 1000.0, 0)):
        close(f"roof({I}, 1000, 100)", learner.roof(I, 1000, 100), wanted, 1e-9, hint=hint)


def _by_trying(N, K, w, e, peak, bandwidth, most=4096):
    return next((M for M in range(1, most) if 2 * M * N * K * bandwidth >= peak * (w * N * K + e * M * (N + K))), None)


def check_first_batch(learner):
    for *case, hint in (
        (64, 64, 2, 0, 40, 4, 0),  # x and y for nothing: the ridge, 10, is reached at 10 exactly
        (64, 64, 2, 0, 41, 4, 0), (128, 64, 0.5, 2, 100, 10, 1), (4096, 4096, 0.5, 2, 989, 3, 1),
        (7, 5, 4, 4, 3, 7, 1), (64, 64, 2, 4, 64, 4, 2), (64, 64, 2, 4, 100, 4, 2), (64, 64, 2, 2, 0, 1, 3),
        (4096, 4096, 0.5, 2, 3, 30, 1),
    ):
        wanted = _by_trying(*case)
        close(f"first_batch{tuple(case)}", learner.first_batch(*case), wanted, 0, hint=hint)


def check_tokens(learner):
    for *case, wanted, hint in (
        (1, 1000, 2, 0, 1e30, 4000, 2.0, 2), (8, 1000, 2, 0, 1e30, 4000, 16.0, 2),
        (8, 1000, 2, 250, 1e30, 4000, 8.0, 0),
        (4, 1000, 0.5, 0, 16000, 8000, 8.0, 1), (4, 1000, 2, 500, 16000, 8000, 8.0, 1),
    ):
        close(f"tokens_per_second{tuple(case)}", learner.tokens_per_second(*case), wanted, 1e-9, hint=hint)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("return 2 * M * N * K /", "return M * N * K /", "intensity", 0),
    ("number_bytes * M * (N + K)", "number_bytes * M * N * K", "intensity", 1),
    ("(weight_bytes * N * K +", "(weight_bytes * M * N * K +", "intensity", 1),
    ("number_bytes * M * (N + K))", "weight_bytes * M * (N + K))", "intensity", 2),
    ("bandwidth * flops_per_byte", "bandwidth / flops_per_byte", "roof", 1),
    ("min(peak, ", "max(peak, ", "roof", 0),
    ("math.ceil(peak * weight_bytes * N * K / room)", "int(peak * weight_bytes * N * K / room)", "first_batch", 0),
    ("math.ceil(peak * weight_bytes * N * K / room)", "int(peak * weight_bytes * N * K / room) + 1", "first_batch", 0),
    ("bandwidth - peak * number_bytes * (N + K)", "bandwidth", "first_batch", 1),
    ("    if room <= 0:\n        return None\n", "    room = abs(room) or 1\n", "first_batch", 2),
    ("max(1, math.ceil(peak * weight_bytes * N * K / room))", "math.ceil(peak * weight_bytes * N * K / room)",
     "first_batch", 3),
    ("+ batch * cache_bytes", "+ cache_bytes", "tokens", 0),
    ("max(computing, moving)", "(computing + moving)", "tokens", 1),
    ("return batch / max", "return 1 / max", "tokens", 2),
]
