"""The emulator's Python side: CUDA kernels and programs, compiled by g++, run and profiled on this computer.

`emulator_build` compiles kernels over `csrc/simt`, plain or with a profiler; `cuda_program` takes whole programs that
were never written for it. The room imports nothing of the rest of minillama. Read `emulator_build` first.
"""

FLOOR = 0  # imports from its own floor or a lower one
