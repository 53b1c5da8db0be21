"""What nvcc says of each kernel, without a GPU: registers, shared memory, stack, spills, occupancy, instructions.

    python kernel_occupancy.py      compile for every architecture, and write docs/kernels.json and docs/kernels.md

Occupancy is counted from the limits of an SM (CUDA C++ Programming Guide, table of compute capabilities), not timed.
"""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

from cuda_build import ARCHITECTURES, nvcc

ROOT = Path(__file__).resolve().parent
SM = {"80": (64, 32, 164), "89": (48, 24, 100), "90": (64, 32, 228), "120": (48, 24, 100)}  # warps, blocks, shared KiB
THREADS = {"rope_v1": 128, "rope_v2": 128, "rope_v3": 128, "rope_v4": 128, "rope_scalar": 128, "nf4_matmul_v1": 64,
           "nf4_matmul_backward_v1": 64, "nf4_matmul_v2": 128, "nf4_matmul_v3": 128, "nf4_matvec_v1": 128,
           "nf4_matmul_backward_v2": 256, "nf4_matmul_backward_v3": 128, "flash_delta_v1": 128,
           "flash_attention_v1": 64, "flash_dq_v1": 64, "flash_dkv_v1": 64, "flash_attention_v2": 128,
           "flash_gradients_v2": 256, "flash_wide_v2": 128, "flash_wide_dq_v2": 256, "flash_wide_dkv_v2": 256,
           "flash_decoding_v1": 128, "flash_decoding_v2": 128,
           "flash_combine_v1": 128, "pack_mask_v1": 128}  # of a block
ONE_WARP = ("flash_attention_v1 fp32 256", "flash_dq_v1 fp32 256", "flash_dkv_v1 fp32 256")  # a block has, not two
BOOLS = {"rope": ("half-split", "interleaved"), "flash": (None, "masked")}  # of a template
TYPES = {"f": "fp32", "6__half": "fp16", "13__nv_bfloat16": "bf16"}
OPCODES = {"global loads": r"ld\.global", "of 16 bytes": r"ld\.global(\.nc)?\.(v4\.\w32|v2\.\w64)",
           "global stores": r"st\.global", "16-byte stores": r"st\.global(\.cs)?\.(v4\.\w32|v2\.\w64)",
           "tensor-core products": r"mma\.sync", "ldmatrix": r"ldmatrix", "async copies": r"cp\.async\.c[ag]",
           "shared loads": r"ld\.shared",
           "shared stores": r"st\.shared", "barriers": r"(?:bar|barrier)\.", "fma": r"fma\.rn\.f32",
           "doubles": r"\w[\w.]*\.f64"}


def nvcc_run(*words):
    """The compiler's messages; RuntimeError with them where it fails."""
    if not nvcc():
        raise RuntimeError("there is no nvcc here: pip install 'minillama[cuda]', or set CUDA_HOME")
    done = subprocess.run([nvcc(), "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", *map(str, words)], capture_output=True,
                          text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return done.stderr


def readable(mangled):
    """"flash_dq_v1 fp16 64" or "rope_v4 fp16 interleaved" for the mangled name of that instance; None for others'."""
    for name in sorted(THREADS, key=len, reverse=True):
        if found := re.search(rf"\d{name}I({'|'.join(TYPES)})(?:Li(\d+)E)?(?:Li(\d+)E)?(?:Lb(\d)E)?E", mangled):
            which = BOOLS[name.split("_")[0]][int(found[4])] if found[4] else None
            return " ".join(filter(None, (name, TYPES[found[1]], found[2], found[3], which)))
        if re.search(rf"\d{name}E", mangled):  # of no type
            return name
    return None


def figures(architecture, source=ROOT / "csrc/cuda/kernels.cu"):
    """{kernel: {"registers", "shared", "stack", "spills", "warps"}} for "80" and so on; bytes, and warps of an SM."""
    with tempfile.TemporaryDirectory() as folder:
        said = nvcc_run(f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v,-warn-double-usage", source, "-o",
                        Path(folder, "kernels.cubin"))
    found = {}
    for part in said.split("Compiling entry function")[1:]:
        number = {name: int(match[1]) if (match := re.search(pattern, part)) else 0 for name, pattern in (
            ("registers", r"Used (\d+) registers"), ("shared", r"(\d+) bytes smem"),
            ("stack", r"(\d+) bytes stack frame"), ("spills", r"(\d+) bytes spill stores"))}
        kernel = readable(part.splitlines()[0])
        number["shared"] += dynamic_shared(kernel)
        found[kernel] = number | {"warps": resident_warps(architecture, kernel, number)}
    return found


def dynamic_shared(kernel):
    """Bytes that a launch asks for and no compiler tells: GradientTiles in flash_backward_tensor_cores.cuh, WideKeys in
    flash_wide_backward.cuh."""
    if kernel and kernel.startswith("flash_wide_dkv_v2"):
        return 256 * int(kernel.split()[2]) + 16 * 1024 + 384
    if not kernel or not kernel.startswith("flash_gradients_v2"):
        return 0
    d = int(kernel.split()[2])
    queries = 32 if d <= 96 else 16  # of a tile; two stages of them and of their gradients, with 12 bytes a row
    return 2 * (256 * d + 4 * queries * d + 128 * queries) + 24 * queries + 24


def resident_warps(architecture, kernel, number):
    """Warps that an SM can hold at once: by registers (65536, given out in 256 a warp), shared memory and blocks."""
    most_warps, most_blocks, kib = SM[architecture]
    warps = 1 if kernel in ONE_WARP else THREADS[kernel.split()[0]] // 32
    by_registers = 65536 // (-(-number["registers"] * 32 // 256) * 256) // warps
    by_shared = kib * 1024 // (number["shared"] + 1024)  # 1 KiB of each block is the system's
    return warps * min(most_warps // warps, most_blocks, by_registers, by_shared)


def loop_length(lines):
    """How many instructions of PTX one turn of the loop has in which the products are: the shortest piece between a
    label and a branch back to it that holds half of them. 0 where there is none. Branches around are counted too."""
    product = re.compile(r"\s*(@!?%p\d+\s+)?(fma\.rn\.f32|mma\.sync)")
    labels = {line.strip()[:-1]: number for number, line in enumerate(lines) if re.fullmatch(r"\$\w+:", line.strip())}
    half, found = sum(bool(product.match(line)) for line in lines) / 2, []
    for end, line in enumerate(lines):
        back = re.search(r"bra\S*\s+(\$\w+);", line)
        if back and labels.get(back[1], end) < end:
            piece = lines[labels[back[1]]:end + 1]
            if sum(bool(product.match(line)) for line in piece) >= half > 0:
                found.append(sum(bool(re.match(r"\s*[@a-z].*;", line)) for line in piece))
    return min(found, default=0)


def opcodes(source=ROOT / "csrc/cuda/kernels.cu"):
    """{kernel: {kind: how many such instructions its PTX for sm_80 holds}}."""
    with tempfile.TemporaryDirectory() as folder:
        nvcc_run("-arch=sm_80", "-ptx", source, "-o", Path(folder, "kernels.ptx"))
        text = Path(folder, "kernels.ptx").read_text()
    found = {}
    for part in text.split(".visible .entry ")[1:]:
        lines = [re.sub(r"^\s*(@!?%p\d+\s+)?", "", line) for line in part.splitlines()]
        found[readable(part.split("(")[0])] = {
            kind: sum(bool(re.match(pattern, line)) for line in lines) for kind, pattern in OPCODES.items()}
        found[readable(part.split("(")[0])]["loop"] = loop_length(part.splitlines())
    return found


def version():
    """nvcc's release, such as "13.0"."""
    said = subprocess.run([nvcc(), "--version"], capture_output=True, text=True).stdout
    return re.search(r"release ([\d.]+)", said)[1]


def write_table(record):
    """docs/kernels.md from the record."""
    names = ARCHITECTURES.split()
    lines = [f"# What nvcc {record['nvcc']} makes of the kernels", "",
             "Counted, not timed; no GPU was asked. Registers a thread / warps that an SM can hold, for each compute",
             "capability; shared memory of a block in bytes; and instructions in the PTX for 8.0, as written, not run.",
             "Loop: all instructions of one turn of the loop that multiplies, as written, not run.",
             "No kernel has a stack, a spill or a double. Made by `python kernel_occupancy.py`.", "",
             " | ".join(["| kernel", *(f"{name[:-1]}.{name[-1]}" for name in names), "shared", *OPCODES, "loop", ""]),
             "|---" * (3 + len(names) + len(OPCODES)) + "|"]
    for kernel, counts in record["opcodes"].items():
        cells = [f"{(f := record['figures'][name][kernel])['registers']} / {f['warps']}" for name in names]
        shared = str(record["figures"]["80"][kernel]["shared"])
        numbers = (str(counts[kind]) for kind in (*OPCODES, "loop"))
        lines.append(" | ".join([f"| {kernel}", *cells, shared, *numbers, ""]))
    text = "\n".join(line.rstrip() for line in lines)
    (ROOT / "docs/kernels.md").write_text(text + "\n", encoding="utf-8")


def main():
    os.chdir(ROOT)
    record = {"nvcc": version(), "figures": {name: figures(name) for name in ARCHITECTURES.split()},
              "opcodes": opcodes()}
    (ROOT / "docs/kernels.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_table(json.loads((ROOT / "docs/kernels.json").read_text()))


if __name__ == "__main__":
    main()
