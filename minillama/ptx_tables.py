"""The names of PTX and what they are in C++ (NVIDIA's PTX ISA 8.x); read by inline_ptx and ptx_instructions."""


class UnsupportedPtx(ValueError):
    """An instruction, or a form of it, that is not translated; the text is the instruction."""


TYPES = {f"{kind}{bits}": f"{'int' if kind == 's' else 'uint'}{bits}_t" for kind in "usb" for bits in (8, 16, 32, 64)}
TYPES |= {"f32": "float", "f64": "double", "f16": "__half", "bf16": "__nv_bfloat16", "f16x2": "__half2",
          "bf16x2": "__nv_bfloat162", "pred": "bool", "tf32": "uint32_t"}
SPECIAL = {"laneid": "uint32_t(simt::lane_id())", "warpid": "simt::ptx::rank() / 32", "smid": "0u", "nsmid": "16u",
           "warpsz": "32u", "WARP_SZ": "32u", "nwarpid": "48u", "gridid": "0ull", "clock": "uint32_t(clock64())",
           "clock64": "uint64_t(clock64())", "globaltimer": "uint64_t(clock64())",
           "globaltimer_lo": "uint32_t(clock64())", "lanemask_eq": "(1u << simt::lane_id())",
           "lanemask_lt": "((1u << simt::lane_id()) - 1)", "lanemask_le": "((2u << simt::lane_id()) - 1)",
           "lanemask_ge": "(~0u << simt::lane_id())", "lanemask_gt": "(~1u << simt::lane_id())"}
SPECIAL |= {f"{ptx}.{axis}": f"{name}.{axis}" for ptx, name in (("tid", "threadIdx"), ("ntid", "blockDim"),
            ("ctaid", "blockIdx"), ("nctaid", "gridDim")) for axis in "xyz"}
HINTS = ("ca cg cs lu cv wb wt nc volatile weak relaxed acquire release acq_rel gpu sys cta global generic const param "
         "L1::no_allocate L1::evict_last L1::evict_first L1::evict_normal L2::64B L2::128B L2::256B L2::evict_first "
         "L2::evict_last").split()
SPACES = ("shared", "shared::cta")
BINARY = {"add": "a + b", "sub": "a - b", "and": "a & b", "or": "a | b", "xor": "a ^ b", "rem": "a % b"}
MATH = {"ex2": "std::exp2(a)", "lg2": "std::log2(a)", "sin": "std::sin(a)", "cos": "std::cos(a)",
        "tanh": "std::tanh(a)", "rcp": "1 / a", "sqrt": "std::sqrt(a)", "rsqrt": "1 / std::sqrt(a)"}
COMPARE = {"eq": "a == b", "ne": "a != b", "lt": "a < b", "le": "a <= b", "gt": "a > b", "ge": "a >= b",
           "lo": "a < b", "ls": "a <= b", "hi": "a > b", "hs": "a >= b", "neu": "!(a == b)", "ltu": "!(a >= b)",
           "gtu": "!(a <= b)", "geu": "!(a < b)", "leu": "!(a > b)", "equ": "!(a < b) && !(a > b)",
           "nan": "a != a || b != b", "num": "a == a && b == b"}
ATOMIC = {"add": "Add", "exch": "Exch", "min": "Min", "max": "Max", "and": "And", "or": "Or", "xor": "Xor",
          "inc": "Inc", "dec": "Dec"}
MMA = {  # shape, d, a, b, c -> bits of an element, its decoder, type of a sum
    **{(f"m16n8k{k}", d, t, t, d): (16, f"simt::from_{n}", d) for k in (8, 16) for d in ("f32", "f16")
       for t, n in (("f16", "half"), ("bf16", "bfloat16")) if (d, t) != ("f16", "bf16")},
    **{(f"m16n8k{k}", "f32", "tf32", "tf32", "f32"): (32, "simt::ptx::from_tf32", "f32") for k in (4, 8)},
    **{(f"m16n8k{k}", "s32", a, b, "s32"): (8, f"simt::ptx::from_{a}", "s32") for k in (16, 32)
       for a, b in (("s8", "s8"), ("u8", "u8"))},
}
