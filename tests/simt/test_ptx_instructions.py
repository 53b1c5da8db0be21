"""Each form of an instruction that PTX's manual has becomes the C++ it stands for; each slip in a form is refused.

tests/simt/programs/instructions.cu runs what is written here; these laws need no compiler.
"""

import pytest
from mutants import Mutant

from minillama.simt.inline_ptx import split
from minillama.simt.ptx_instructions import translate
from minillama.simt.ptx_tables import UnsupportedPtx


class Plain:
    """A statement whose C++ can be read: a register is its name, read as its PTX type."""

    def value(self, text):
        return text

    def read(self, kind, text):
        return f"{kind}({text})"

    def list(self, text):
        return text.strip("{}").split(",")

    def array(self, kind, text):
        return "{" + ", ".join(self.read(kind, one) for one in self.list(text)) + "}"

    def write(self, target, value):
        return f"{target} = {value};"

    def pointer(self, space, kind, text):
        return f"{'shared' if space else 'generic'} {kind}* {text}"


def meaning(instruction):
    opcode, _, rest = instruction.partition(" ")
    return translate(Plain(), opcode, [part.strip() for part in split(rest, ",")])


@pytest.mark.parametrize(("instruction", "cpp"), [
    ("add.s32 d, x, y", "{ const uint32_t a = u32(x); const uint32_t b = u32(y); d = uint32_t(a + b); }"),
    ("sub.f64 d, x, y", "{ const double a = f64(x); const double b = f64(y); d = double(a - b); }"),
    ("mul.lo.s64 d, x, y", "{ const uint64_t a = u64(x); const uint64_t b = u64(y); d = uint64_t(a * b); }"),
    ("mul.f32 d, x, y", "{ const float a = f32(x); const float b = f32(y); d = float(a * b); }"),
    ("div.s32 d, x, y", "{ const int32_t a = s32(x); const int32_t b = s32(y); d = int32_t(a / b); }"),
    ("add.rn.sat.f32 d, x, y", "{ const float a = f32(x); const float b = f32(y); "
                               "d = __saturatef(float(simt::unfused(simt::unfused(a) + simt::unfused(b)))); }"),
    ("mul.rn.f64 d, x, y", "{ const double a = f64(x); const double b = f64(y); "
                           "d = double(simt::unfused(simt::unfused(a) * simt::unfused(b))); }"),
    ("fma.rn.ftz.sat.f32 d, x, y, z", "{ const float a = f32(x); const float b = f32(y); const float c = f32(z); "
                                      "d = __saturatef(simt::ptx::fused(a, b, c)); }"),
    ("mul.hi.u32 d, x, y", "{ const uint32_t a = u32(x); const uint32_t b = u32(y); d = simt::ptx::hi(a, b); }"),
    ("not.pred p, q", "{ const bool a = pred(q); p = bool(!a); }"),
    ("not.b32 d, x", "{ const uint32_t a = b32(x); d = uint32_t(~a); }"),
    ("neg.s16 d, x", "{ const int16_t a = s16(x); d = int16_t(-a); }"),
    ("popc.b64 d, x", "{ const uint64_t a = b64(x); d = uint32_t(simt::ptx::count(a)); }"),
    ("sqrt.rn.f64 d, x", "{ const double a = f64(x); d = double(std::sqrt(a)); }"),
    ("shf.l.clamp.b32 d, x, y, z", "d = __funnelshift_lc(u32(x), u32(y), u32(z));"),
    ("mov.b64 {h,i}, x", "{ const uint64_t a = b64(x); h = uint32_t(a >> 0); i = uint32_t(a >> 32); }"),
    ("mov.b64 d, {h,i,j,k}", "d = uint64_t(u16(h)) << 0 | uint64_t(u16(i)) << 16 | uint64_t(u16(j)) << 32 | "
                             "uint64_t(u16(k)) << 48;"),
    ("mov.u32 d, x", "d = u32(x);"),
    ("cvt.rn.bf16x2.f32 d, x, y", "d = __nv_bfloat162(f32(y), f32(x));"),
    ("cvt.rz.f64.f32 d, x", "d = double(f32(x));"), ("cvt.rn.f32.s64 d, x", "d = float(s64(x));"),
    ("cvt.rpi.u32.f32 d, x", "d = ::simt::to_integer<uint32_t>(std::ceil(f32(x)));"),
    ("cvt.sat.f32.f16 d, x", "d = __saturatef(float(float(f16(x))));"),
    ("setp.hs.b32 p, x, y", "{ const uint32_t a = b32(x), b = b32(y); const bool yes = a >= b; p = yes;  }"),
    ("setp.ne.or.f32 p|q, x, y, r", "{ const float a = f32(x), b = f32(y); const bool yes = a != b; p = yes | r; "
                                    "q = !yes | r; }"),
    ("ld.global.nc.v2.b16 {h,i}, [p]", "{ const auto got = simt::ptx::load(generic const simt::ptx::Pack<uint16_t, 2>* "
                                "[p]); h = simt::ptx::extend(got.part[0]); i = simt::ptx::extend(got.part[1]); }"),
    ("ld.shared.f32 d, [p]", "{ const auto got = simt::ptx::load(shared const simt::ptx::Pack<float, 1>* [p]); "
                             "d = (got.part[0]); }"),
    ("st.shared.v2.s8 [p], {h,i}", "simt::ptx::store(shared simt::ptx::Pack<int8_t, 2>* [p], "
                                   "simt::ptx::Pack<int8_t, 2>{{s8(h), s8(i)}});"),
    ("atom.shared.cas.b32 d, [p], x, y", "d = atomicCAS(shared uint32_t* [p], b32(x), b32(y));"),
    ("atom.global.max.s64 d, [p], x", "d = atomicMax(generic int64_t* [p], s64(x));"),
    ("red.global.add.noftz.bf16x2 [p], x", "atomicAdd(generic __nv_bfloat162* [p], bf16x2(x));"),
    ("cvta.to.global.u64 d, x", "d = u64(x);"),
    ("cvta.shared.u64 d, x", "d = uint64_t(simt::ptx::shared(u64(x)));"),
    ("cvta.to.shared.u64 d, x", "d = simt::shared_address(simt::ptx::generic(u64(x)), simt::Where::here());"),
    ("cp.async.commit_group", "cp_async_commit();"), ("cp.async.wait_group 2", "simt::finish_copies(int(2));"),
    ("cp.async.wait_all", "simt::commit_copies(); simt::finish_copies(0);"),
    ("cp.async.ca.shared.global [p], [q], 8, 5", "simt::ptx::copy_async(shared void* [p], generic const void* [q], "
                                                 "int(8), int(5), 4);"),
    ("cp.async.cg.shared.global.L2::128B [p], [q], 16", "simt::ptx::copy_async(shared void* [p], generic const void* "
                                                        "[q], int(16), int(16), 16);"),
    ("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {h,i}, [p]", "{ unsigned got[2]; simt::ptx::ldmatrix<2>(got, "
                                                "shared const void* [p], true); h = got[0]; i = got[1]; }"),
    ("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {h,i}, {j,k}, {l}, {m,n}",
     "{ const unsigned a[] = {u32(j), u32(k)}, b[] = {u32(l)}; uint32_t c[] = {u32(m), u32(n)}; "
     "simt::ptx::mma<16, __half>(c, a, b, simt::from_half); h = c[0]; i = c[1]; }"),
    ("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {h,i,j,k}, {l,m}, {n}, {h,i,j,k}",
     "{ const unsigned a[] = {u32(l), u32(m)}, b[] = {u32(n)}; float c[] = {f32(h), f32(i), f32(j), f32(k)}; "
     "simt::ptx::mma<32, float>(c, a, b, simt::ptx::from_tf32); h = c[0]; i = c[1]; j = c[2]; k = c[3]; }"),
    ("shfl.sync.down.b32 d|p, x, 1, 31, m", "{ bool inside; const uint32_t got = simt::ptx::shfl('d', inside, u32(x), "
                                            "u32(1), u32(31), u32(m)); d = got;p = inside; }"),
    ("vote.sync.ballot.b32 d, p, m", "d = __ballot_sync(u32(m), p);"),
    ("redux.sync.xor.b32 d, x, m", "d = __reduce_xor_sync(u32(m), b32(x));"),
    ("match.any.sync.b64 d, x, m", "d = __match_any_sync(u32(m), b64(x));"),
    ("bar.warp.sync m", "__syncwarp(u32(m));"), ("barrier.cta.sync.aligned 0", "__syncthreads();"),
    ("nanosleep.u32 20", "__nanosleep(1);"), ("trap", "__trap();"), ("fence.acq_rel.gpu", "::simt::fence();"),
    ("bfe.s64 d, x, y, z", "d = simt::ptx::bfe(s64(x), u32(y), u32(z));"), ("activemask.b32 d", "d = __activemask();"),
])
def test_an_instruction_is_the_cpp_that_the_manual_describes(instruction, cpp):
    assert meaning(instruction) == cpp


@pytest.mark.parametrize("instruction", [
    "add.s32 d, x", "add.sat.f64 d, x, y", "add.approx.s32 d, x, y", "min.b32 d, x, y", "mul.s32 d, x, y",
    "mad.s32 d, x, y, z", "fma.rn.f32 d, x, y", "fma.rn.sat.f64 d, x, y, z", "mul.wide.f32 d, x, y, z",
    "mad.hi.sat.s32 d, x, y, z", "sin.f16 d, x", "shf.l.clamp.b64 d, x, y, z",
    "cvt.rn.f16x2.f64 d, x, y", "cvt.rn.f32.f32 d, x, y", "cvt.rz.f16x2.f32 d, x, y", "cvt.u32.f32 d, x",
    "cvt.sat.u8.s32 d, x", "cvt.rz.f32.f64 d, x", "cvt.rz.f64.f16 d, x", "cvt.rn.f33.f32 d, x", "cvt.rn.f32.f33 d, x",
    "cvt.odd.f32.s32 d, x", "cvt.rn.tf32.f32 d, x", "ld.v2.f32 d, [p]", "ld.f32 d, [p], 3", "ld.texture.f32 d, [p]",
    "atom.add.odd.u32 d, [p], x", "atom.odd.u32 d, [p], x", "cvta.texture.u64 d, x", "cvta.to.global.u128 d, x",
    "cp.sync.ca.shared.global [p], [q], 4", "cp.async.cw.shared.global [p], [q], 4",
    "cp.async.ca.odd.global [p], [q], 4", "ldmatrix.sync.aligned.m8n8.b16 {h}, [p]",
    "ldmatrix.sync.aligned.m8n8.x1.x2.b16 {h}, [p]", "shfl.up.b32.sync d, x, 1, 31, m",
    "shfl.sync.up.b64 d, x, 1, 31, m", "shfl.sync.left.b32 d, x, 1, 31, m", "shfl.wait.up.b32 d, x, 1, 31, m",
    "shfl.sync.up.b32 d, x, 1, 31", "shfl.sync.up.b32.b32 d, x, 1, 31, m", "vote.sync.uni.pred d, p, m",
    "vote.wait.all.pred d, p, m", "vote.sync.all.b32 d, p, m", "redux.sync.mul.s32 d, x, m",
    "redux.wait.add.s32 d, x, m", "redux.sync.add.s32.s32 d, x, m", "match.all.sync.b32 d, x, m",
    "match.any.wait.b32 d, x, m", "nanosleep.s64 5", "trap.odd", "fence.odd", "bar.sync 1",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {h,h,h,h}, {h,h,h,h}, {h,h}, {h,h,h}",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {h,h,h,h}, {h,h,h}, {h,h}, {h,h,h,h}",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {h,h,h,h}, {h,h,h,h}, {h}, {h,h,h,h}",
    "mma.sync.aligned.m16n8k16.row.col.satfinite.s32.s8.s8.s32 {h,h,h,h}, {h,h}, {h}, {h,h,h,h}",
])
def test_a_slip_in_the_form_of_an_instruction_is_refused(instruction):
    with pytest.raises(UnsupportedPtx, match=instruction.split()[0].replace(".", "[.]")):
        meaning(instruction)


MUTANTS = [
    Mutant("minillama.simt.ptx_instructions", '>> {bits * i})', '>> {bits + i})', lambda:
           test_an_instruction_is_the_cpp_that_the_manual_describes(
               "mov.b64 {h,i}, x", "{ const uint64_t a = b64(x); h = uint32_t(a >> 0); i = uint32_t(a >> 32); }")),
    Mutant("minillama.simt.ptx_instructions", 'if len(args) != 2 or len(parts) != vector:', "if False:", lambda:
           test_a_slip_in_the_form_of_an_instruction_is_refused("ld.v2.f32 d, [p]")),
]
