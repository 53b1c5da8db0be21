"""Does this program compute what another does, with the same weights?

`compare_models` climbs from token ids to logits and names the first place where two programs part; `parity_peers` are
the programs to compare with; `checkpoint_diff` and `tensor_diff` name the mistake that turns one file into another.
`kernels_verify` holds every compiled kernel against float64. Read `compare_models` first.
"""

FLOOR = 4  # imports from its own floor or a lower one
