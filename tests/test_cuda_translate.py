"""CUDA text becomes C++ text with the same lines: launches, dynamic shared memory, casts that hide a kernel's type."""

from pathlib import Path

import pytest
from mutants import Mutant

from minillama.cuda_translate import masked, translate

FOLDER = Path(__file__).resolve().parent / "simt" / "programs"


def body(text):
    """The translation without its first line, which names the file."""
    return translate(text, "k.cu").split("\n", 1)[1]


@pytest.mark.parametrize(("source", "kernel", "config", "arguments"), [
    ("add<<<1, 2>>>(a, b);", "add", "1, 2", "(a, b);"),
    ("add <<< g, b >>> (a);", "add ", " g, b ", " (a);"),
    ("add << < g, b >> > (a);", "add ", " g, b ", " (a);"),
    ("mm<16, float><<<dim3(1, 2), f(3), s, 0>>>(a);", "mm<16, float>", "dim3(1, 2), f(3), s, 0", "(a);"),
    ("mm<(N > 1), v<int>><<<1, (a >> b)>>>(a);", "mm<(N > 1), v<int>>", "1, (a >> b)", "(a);"),
    ("if (x) ns::k<3><<<1, 1>>>();", "ns::k<3>", "1, 1", "();"),
    ("x = 1; ::k<<<1, 1>>>();", "::k", "1, 1", "();"),
    ("else (*f)<<<1, 1>>>(x);", "(*f)", "1, 1", "(x);"),
    ("a > b; t[i]<<<1, 1>>>(x);", "t[i]", "1, 1", "(x);"),
    ("{s->k[0]<<<1, 1>>>(NULL, f(NULL));}", "s->k[0]", "1, 1", "(nullptr, f(nullptr));}"),
    ("k<<<1,\n  1,\n sizeof(int) * 2>>>(a,\n b);", "k", "1,\n  1,\n sizeof(int) * 2", "(a,\n b);"),
])
def test_a_launch_becomes_two_calls(source, kernel, config, arguments):
    before = source[: source.index(kernel)]
    assert body(source) == f"{before}SIMT_KERNEL({kernel})({config}){arguments}"


@pytest.mark.parametrize("source", ['"k<<<1, 2>>>(x)"', "// k<<<1, 2>>>(x)", 'cout << "a" << b', 'cout <<""<< b',
                                   "cout << '1' << b >> c", "/* k<<<1,\n 2>>>(x) */", "'<'", "a << b",
                                    'R"(asm("x") k<<<1, 2>>>(x))"', "// asm(\"x\") \\\n k<<<1, 2>>>()",
                                    "extern float x[];", "extern int f();", "asm_(1)"])
def test_what_is_no_cuda_stays_as_it_is(source):
    assert body(source) == source


def test_dynamic_shared_memory_is_a_pointer_inside_a_kernel_and_an_object_outside():
    inside = body('extern "C" { void f() { extern __shared__ __align__(8 * (1)) volatile float s[]; } }')
    assert "volatile float (*s) = static_cast<volatile float (*)>(::simt::dynamic_shared());" in inside
    rows = body("void f() { extern __shared__ half s[][8 + 1][2]; }")
    assert "half (*s)[8 + 1][2] = static_cast<half (*)[8 + 1][2]>(::simt::dynamic_shared());" in rows
    outside = body('namespace a { extern "C" { extern __shared__ float s[]; } }')
    assert "static const ::simt::program::DynamicShared<float> s;" in outside


def test_every_line_keeps_its_number():
    text = (FOLDER / "basics.cu").read_text(encoding="utf-8")
    text += 'asm volatile("mov.u32 %0,\n %1;"\n : "=r"(x) : "r"(y));\nextern __shared__\n float\n s[];\n'
    before, after = text.splitlines(), body(text).splitlines()
    assert len(before) == len(after) and before[-4][:3] != after[-4][:3]
    plain = ("//", "#", "static", "  CHECK")
    assert all(old == new for old, new in zip(before, after, strict=True) if old.startswith(plain))


def test_masking_keeps_every_place():
    text = "a = '\"'; /* \" */ b = \"/* \\\" */\"; c = 1'000; // '\nd"
    assert masked(text).split() == ["a", "=", ";", "b", "=", ";", "c", "=", "1'000;", "d"]
    assert len(masked(text)) == len(text) and masked(text).index("\n") == text.index("\n")


@pytest.mark.parametrize("source", ["k<<<1, 2(x);", "k<<<1, (2>>>(x);"])
def test_a_launch_that_never_closes_is_an_error_with_its_line(source):
    with pytest.raises(ValueError, match="line 2"):
        body("\n" + source)


def test_a_kernel_that_is_launched_through_a_function_keeps_its_type():
    assert body("cudaLaunchCooperativeKernel((void *)k<4>, g, b, a);") == "cudaLaunchCooperativeKernel(k<4>, g, b, a);"
    assert body("cudaLaunchKernel(( const void* ) &k, g);") == "cudaLaunchKernel( &k, g);"
    assert body("f((void *)k, g);") == "f((void *)k, g);"


def test_alignment_may_stand_behind_the_word_shared():
    assert body("__shared__ alignas(16) float x[4];") == "__shared__ __align__(16) float x[4];"
    assert body("alignas(16) __shared__ float x[4];") == "alignas(16) __shared__ float x[4];"


SHIFT = " ::simt::program::ptx_shift "


@pytest.mark.parametrize(("source", "shifted"), [
    ("__device__ int f(int a) { return a << 3 >> a; }", f"{{ return a <<{SHIFT}<< 3 >>{SHIFT}>> a; }}"),
    ("__global__ void f() { a <<= b; a >>= 1; }", f"{{ a <<={SHIFT}<<= b; a >>={SHIFT}>>= 1; }}"),
    ("#define HD __host__ __device__\nHD int f(int a) { return a << 3; }", f"{{ return a <<{SHIFT}<< 3; }}"),
    ("x = [] __device__ (int a) { return i < a >> 1; };", f"{{ return i < a >>{SHIFT}>> 1; }};"),
    ("__device__ void f() { k<<<1, 1 >> 2>>>(v<w<int>>(a)); }", f"(1, 1 >>{SHIFT}>> 2)(v<w<int>>(a)); }}"),
    ("__device__ int f() { return g<h<1>>() << 2; }", f"{{ return g<h<1>>() <<{SHIFT}<< 2; }}"),
])
def test_a_shift_on_the_device_is_written_so_that_cpp_knows_every_count(source, shifted):
    assert body(source).endswith(shifted)


@pytest.mark.parametrize("source", [
    "int f(int a) { return a << 3; }", "__device__ int x = 1 << 3;", "__device__ int f(int a, int b = 1 << 2);",
    "#define HD __device__\nint f(int a) { return a << 3; }", "__device__ void f() {\n#define N (1 << \\\n 3 << 2)\n}",
    "__device__ void f(ostream &s) { s << 3; }", "__device__ int f() { return a > b ? v<w<int>>(a) : 0; }",
    "__device__ void f() { a.b <<= 3; operator<<(a, b); v<w<int>> x; }",
    "__device__ void f() {\n#if A\n if (a) {\n#else\n if (b) {\n#endif\n a << 1; } }",
])
def test_what_may_be_no_shift_or_no_device_stays_as_it_is(source):
    assert body(source) == source


MUTANTS = [
    Mutant("minillama.cuda_translate", '(place, len(end[0]), ")")', '(place, 2, ")")',
           lambda: test_a_launch_becomes_two_calls("k<<<1, 2>>>(a);", "k", "1, 2", "(a);")),
    Mutant("minillama.cuda_translate", 'opened in ([], ["<"] * len(opened))', "True",
           lambda: test_a_launch_becomes_two_calls("m<(N > 1)><<<1, 2>>>(a);", "m<(N > 1)>", "1, 2", "(a);")),
    Mutant("minillama.cuda_translate", r"""|"(?:\\.|[^"\\\n])*"'""", "'",
           lambda: test_what_is_no_cuda_stays_as_it_is('"k<<<1, 2>>>(x)"')),
    Mutant("minillama.cuda_translate", 'source.count("\\n") * "\\n"', '""', test_every_line_keeps_its_number),
    Mutant("minillama.cuda_translate", "open_angles(before) < 2", "True",
           lambda: test_what_may_be_no_shift_or_no_device_stays_as_it_is("__device__ void f() { v<w<int>> x; }")),
    Mutant("minillama.cuda_translate", "not within(directives, at) and", "",
           lambda: test_what_may_be_no_shift_or_no_device_stays_as_it_is("__device__ int f() {\n#if 1 << 2\n#endif }")),
]
