"""The command `simt run`: somebody's CUDA program, on this computer."""

import re
import sys
from pathlib import Path

from minillama.cli.flags import actions, add_number, command
from minillama.config_checks import Range


def add_simt(commands):
    """simt run FILE.cu [--with FILE] [-I DIR] [-D X] [--profile] [--schedule ORDER] [--limit-seconds N] [...]"""
    simt = actions(commands, "simt", "CUDA programs without a GPU")
    run = command(simt, "run", run_program, "build a CUDA program that has a main() with g++, and run it emulated")
    run.add_argument("file", metavar="FILE.cu")
    run.add_argument("arguments", nargs="*", metavar="ARGUMENT",
                     help="what the program is given: right behind FILE, flags before it")
    run.add_argument("--with", dest="others", action="append", default=[], metavar="FILE", help="one more source")
    run.add_argument("-I", dest="folders", action="append", default=[], metavar="DIR", help="where headers are")
    run.add_argument("-D", dest="defines", action="append", default=[], metavar="X[=Y]", help="a macro")
    run.add_argument("--profile", action="store_true", help="count every access, find races and accesses out of bounds")
    run.add_argument("--schedule", default="forward", metavar="ORDER",
                     help="order of the threads: forward, reverse or shuffle:N (default: %(default)s)")
    run.add_argument("--fmad", choices=("true", "false"), default="true",
                     help="a * b + c in kernels is one operation, as nvcc makes it, or two (default: %(default)s)")
    add_number(run, "--limit-seconds", Range(1e-3, 1e7), 60, float)
    add_number(run, "--limit-gib", Range(0.25, 2**20), 8, float, "memory, half of it the device's")


def run_program(arguments):
    """Build and run (`cuda_program.build`, `cuda_program.run`). The exit code is the program's; 1 where it ended well
    and something was found wrong, 3 for what is not supported, 124 where it was stopped."""
    from minillama.simt import cuda_program

    if not re.fullmatch(r"forward|reverse|shuffle:\d+", arguments.schedule):
        raise ValueError(f"--schedule {arguments.schedule}: use forward, reverse or shuffle:N")
    for file in (arguments.file, *arguments.others):
        if not Path(file).is_file():
            raise ValueError(f"{file} is no file: name a .cu or .cpp file")
    try:
        program = cuda_program.build(arguments.file, arguments.folders, arguments.defines, arguments.profile,
                                     arguments.others, arguments.fmad == "true")
    except cuda_program.Unsupported as refused:
        print(f"minillama: {refused}", file=sys.stderr)
        return 3
    result = cuda_program.run(program, arguments.arguments, arguments.schedule, arguments.limit_seconds,
                              memory=arguments.limit_gib)
    return _say(result)


def _say(result):
    """What was found, on stderr; the exit code."""
    lines = list(result.findings)
    if result.profile:
        from minillama.simt.profile_report import Profile

        profile = Profile()
        profile.add(result.profile)
        print(profile.table(), file=sys.stderr)
        lines = [line for line in lines if line not in {found.text for found in profile.findings}]
    for line in [*lines, result.unsupported, result.stopped]:
        if line:
            print(f"minillama: {line}", file=sys.stderr)
    if result.unsupported:
        return 3
    if result.stopped:
        return 124 if result.code == -9 else 128 - result.code
    return result.code or int(bool(lines or (result.profile and profile.findings)))
