"""The emulator's Python side: CUDA source text becomes C++ that g++ compiles and this computer runs.

`profile_build` compiles kernels over `csrc/simt`, plain or with a profiler; `cuda_program` takes whole programs that
were never written for it. The room imports nothing of the rest of minillama. Read `cuda_translate` first.
"""

FLOOR = 0  # imports from its own floor or a lower one
