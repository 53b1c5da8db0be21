"""How good a model is: likelihoods of choices and of texts, and what their averages are worth.

`likelihood` asks a model a question by the choices it finds most likely, `exact_match` lets it write the answer, and
`judge` lets it compare the answers of two others; `standard_error` says how far a result may be from the truth. `exam`
asks a policy questions that it never practised, which `held_out` keeps for it, and `diagnosis` says what
the metrics of a run show, `copying` whether answers name what was asked, `agreement` what labels are worth. Benchmark
files and the commands `evaluate` and `judge` are in `tools/`.
"""

FLOOR = 5  # imports from its own floor or a lower one
