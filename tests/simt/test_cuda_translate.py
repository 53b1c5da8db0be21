"""CUDA text becomes C++ text with the same lines: launches, dynamic shared memory, casts that hide a kernel's type."""

import tempfile
from pathlib import Path

import pytest
from mutants import Mutant

from minillama.simt.cuda_translate import Unsupported, masked, open_angles, translate, translate_tree

FOLDER = Path(__file__).resolve().parent / "programs"


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
    ("(*f)<<<1, 1>>>(x);", "(*f)", "1, 1", "(x);"), ("(*t)[i] <<<1, 1>>>(x);", "(*t)[i] ", "1, 1", "(x);"),
    ("return (f)<<<1, 1>>>(x);", "(f)", "1, 1", "(x);"), ("if (a) (f)<<<1, 1>>>(x);", "(f)", "1, 1", "(x);"),
    ("while (a) k<<<1, 1>>>(x);", "k", "1, 1", "(x);"), ("do (f)<<<1, 1>>>(x);", "(f)", "1, 1", "(x);"),
    ("get(a)<<<1, 1>>>(x);", "get(a)", "1, 1", "(x);"), ("a :: k<<<1, 1>>>(x);", "a :: k", "1, 1", "(x);"),
    ("a.k<<<1, 1>>>(x);", "a.k", "1, 1", "(x);"), ("v<1>::k<<<1, 1>>>(x);", "v<1>::k", "1, 1", "(x);"),
    ("k<p->n><<<1, 1>>>(x);", "k<p->n>", "1, 1", "(x);"), ("k<<<1, a[1] + (2)>>>(x);", "k", "1, a[1] + (2)", "(x);"),
    ("k<<<1, 1>>>(f(NULL), NULL_, NULL); g(NULL);", "k", "1, 1", "(f(nullptr), NULL_, nullptr); g(NULL);"),
    ("k<<<1, 1>>>", "k", "1, 1", ""),
    ("#define GO(n) k_##n<<<1, 1>>>(x)", "k_##n", "1, 1", "(x)"),
    ("a ## b ##c<<<1, 1>>>()", "a ## b ##c", "1, 1", "()"),
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


@pytest.mark.parametrize(("source", "says"), [
    ("k<<<1, 2(x);", "<<< without its >>>"), ("k<<<1, (2>>>(x);", "( is never closed"),
    ("k)<<<1, 2>>>(x);", ") was never opened"), ("extern __shared__ float *s;", "unsupported: float *s;"),
    ("k<<<1, 2>>>(x;", "( is never closed")])
def test_what_never_closes_or_is_unknown_is_an_error_with_its_line(source, says):
    for lines in (0, 1, 2):
        with pytest.raises((ValueError, Unsupported)) as error:
            body("\n" * lines + source + "\n\n")
        assert " ".join(str(error.value).split()) == f"line {lines + 1}: {says}"


def refused(what):
    return (f'do {{ void simt_ptx_0() __attribute__((error("unsupported: inline PTX {what}"))); simt_ptx_0(); }} '
            "while (0)")


@pytest.mark.parametrize(("source", "new"), [
    ('f(); asm("trap;"); g();', "f(); do { __trap(); } while (0); g();"),
    ('__asm__ __volatile__ ("trap;" :: )', "do { __trap(); } while (0)"),
    ('asm ( "bra x\\n;" )', refused("bra")),
    ('asm("mov.u32 %0, \'a;" : "=r"(x))', refused("mov.u32 with the operand 'a")),
    ('asm("mov.u32 %0, \\"a;" : "=r"(x))', refused("mov.u32 with the operand 'a")),
])
def test_inline_ptx_becomes_a_statement_or_an_error_that_is_raised_where_it_is_used(source, new):
    assert body(source) == new


def test_a_file_and_what_it_includes_from_known_folders_is_translated_once(tmp_path):
    source, headers, target = (tmp_path / name for name in ("src", "include", "out"))
    for folder in (source, headers, target):
        folder.mkdir()
    (source / "a.cu").write_bytes(b'#include "own.h"\r\n # include <far.h>\r\n#include <own.h>\r\n#include "gone.h"\r\n'
                                  b"// \xff\r\nk<<<1, 2>>>(x);\r\n")
    (source / "own.h").write_text('#include "../include/far.h"\n')
    (headers / "far.h").write_text("k<<<3, 4>>>(x);\n#include <vector>\n")
    made = translate_tree(source / "a.cu", [headers], target)
    assert made == target / "0_a.cu" and sorted(path.name for path in target.iterdir()) == ["0_a.cu", "1_own.h",
                                                                                            "2_far.h"]
    lines = made.read_text(encoding="utf-8").split("\n")
    assert lines[0] == f'#line 1 "{source / "a.cu"}"' and lines[1:] == [
        f'#include "{target / "1_own.h"}"', f' # include "{target / "2_far.h"}"', "#include <own.h>",
        '#include "gone.h"', "// \ufffd", "SIMT_KERNEL(k)(1, 2)(x);", ""]
    assert f'#include "{target / "2_far.h"}"' in (target / "1_own.h").read_text()
    assert (target / "2_far.h").read_text().endswith("SIMT_KERNEL(k)(3, 4)(x);\n#include <vector>\n")
    (headers / "far.h").write_text("\n\nk<<<1, 2(x);\n")
    with pytest.raises(ValueError, match=f"^{headers / 'far.h'}:3: <<< without its >>>$"):
        translate_tree(source / "a.cu", [headers], target)


def test_a_byte_order_mark_is_no_part_of_the_program():
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "a.cu"
        source.write_bytes(b"\xef\xbb\xbf#include <vector>\n")
        made = translate_tree(source, [], Path(folder))
        assert made.read_text(encoding="utf-8") == f'#line 1 "{source}"\n#include <vector>\n'


def test_a_kernel_that_is_launched_through_a_function_keeps_its_type():
    assert body("cudaLaunchCooperativeKernel((void *)k<4>, g, b, a);") == "cudaLaunchCooperativeKernel(k<4>, g, b, a);"
    assert body("cudaLaunchKernel(( const void* ) &k, g);") == "cudaLaunchKernel( &k, g);"
    assert body("f((void *)k, g);") == "f((void *)k, g);"


def test_alignment_may_stand_behind_the_word_shared():
    assert body("__shared__ alignas(16) float x[4];") == "__shared__ __align__(16) float x[4];"
    assert body("alignas(16) __shared__ float x[4];") == "alignas(16) __shared__ float x[4];"


def test_a_function_may_be_marked_noinline_by_nvccs_word():
    assert body("__noinline__ int f();") == "__attribute__((noinline)) int f();"
    for kept in ("__attribute__((__noinline__)) int f();", "[[gnu::__noinline__]] int f();"):
        assert body(kept) == kept


SHIFT = " ::simt::program::ptx_shift "


@pytest.mark.parametrize(("source", "shifted"), [
    ("__device__ int f(int a) { return a << 3 >> a; }", f"{{ return a <<{SHIFT}<< 3 >>{SHIFT}>> a; }}"),
    ("__global__ void f() { a <<= b; a >>= 1; }", f"{{ a <<={SHIFT}<<= b; a >>={SHIFT}>>= 1; }}"),
    ("#define HD __host__ __device__\nHD int f(int a) { return a << 3; }", f"{{ return a <<{SHIFT}<< 3; }}"),
    ("x = [] __device__ (int a) { return i < a >> 1; };", f"{{ return i < a >>{SHIFT}>> 1; }};"),
    ("__device__ void f() { k<<<1, 1 >> 2>>>(v<w<int>>(a)); }", f"(1, 1 >>{SHIFT}>> 2)(v<w<int>>(a)); }}"),
    ("__device__ void f() { *a.b <<= c; a.b << 1; }", f"{{ *a.b <<= c; a.b <<{SHIFT}<< 1; }}"),
    ("__device__ void f() { a <\n b >> 2; }", f"{{ a <\n b >>{SHIFT}>> 2; }}"),
    ("__device__ void f() { a < b; c < d >> 2; }", f"{{ a < b; c < d >>{SHIFT}>> 2; }}"),
    ("__device__ void f() { v<int> a; v<v<int>> (c >> 2); }", f"{{ v<int> a; v<v<int>> (c >>{SHIFT}>> 2); }}"),
    ("__device__ __forceinline__ int f(int a, int b = (1 + 2)) {return a<<b;}", f"{{return a<<{SHIFT}<<b;}}"),
    ("__device__ int f() { return g<h<1>>() << 2; }", f"{{ return g<h<1>>() <<{SHIFT}<< 2; }}"),
])
def test_a_shift_on_the_device_is_written_so_that_cpp_knows_every_count(source, shifted):
    assert body(source).endswith(shifted)


@pytest.mark.parametrize("source", [
    "int f(int a) { return a << 3; }", "__device__ int x = 1 << 3;", "__device__ int f(int a, int b = 1 << 2);",
    "#define HD __device__\nint f(int a) { return a << 3; }", "__device__ void f() {\n#define N (1 << \\\n 3 << 2)\n}",
    "__device__ void f() { g(a < b, c < d >> 2); }", "__device__ void f() { v<1> < w < x >> 2; }",
    "__device__ void f(ostream &s) { s << 3; }", "__device__ int f() { return a > b ? v<w<int>>(a) : 0; }",
    "__device__ void f() { a.b <<= 3; operator<<(a, b); v<w<int>> x; }",
    "__device__ void f() {\n#if A\n if (a) {\n#else\n if (b) {\n#endif\n a << 1; } }",
])
def test_what_may_be_no_shift_or_no_device_stays_as_it_is(source):
    assert body(source) == source


@pytest.mark.parametrize(("before", "count"), [
    ("a <", 1), ("v<w<x", 2), ("v<w<1> > x <", 1), ("a < b > c > d <", 1), ("v < (a < b", 1), ("f(a < b) ", 0),
    ("f(a > b) + c <", 1), ("a<b>", 0), ("a<b>c<d", 1), ("v<a, w<b>", 1), ("x >= 1 <", 1), ("p->q < 1 << 2", 1),
    ("a < b; c <", 1), ("a < f(x; y) < c", 2), ("v<a<b>, c<d>, e", 1), ("a > b < c", 1), ("", 0)])
def test_an_angle_is_open_where_nothing_closes_it(before, count):
    assert open_angles(before) == count


@pytest.mark.parametrize(("declared", "told"), [
    ("float acc[N * (2)]; acc[0] = 1;", "float acc[N * (2)] SIMT_LOCAL; SIMT_BEGINS(acc) acc[0] = 1;"),
    ("float s; s += 1;", "float s SIMT_LOCAL; SIMT_BEGINS(s) s += 1;"),
    ("unsigned int u, w = f(1, 2); if (w) u = 2; g(u);",
     "unsigned int u SIMT_LOCAL, w = f(1, 2); SIMT_BEGINS(u) if (w) u = 2; g(u);"),
    ("int *p; use(p);", "int *p SIMT_LOCAL; SIMT_BEGINS(p) use(p);"),
    ("__align__(16) ns::T<int, 4> v; v.x = 1;", "__align__(16) ns::T<int, 4> v SIMT_LOCAL; SIMT_BEGINS(v) v.x = 1;"),
    ("for (;;) { int q; q++; }", "for (;;) { int q SIMT_LOCAL; SIMT_BEGINS(q) q++; }"),
])
def test_a_local_variable_that_may_be_read_before_it_is_set_is_told_to_the_profiler(declared, told):
    assert body(f"__device__ void f() {{ {declared} }}") == f"__device__ void f() {{ {told} }}"


@pytest.mark.parametrize("text", [
    "int i, j; for (i = 0; i < 3; ++i) for (j = 0; j < i; ++j) g(i, j);", "float s; s = 1; g(s);", "int unused;",
    "return x;", "__shared__ float t[4]; g(t);", "struct S { int a; float b[2]; }; g();", "f(a), g(b);",
    "T c(x, y); g(c);", "extern int e; g(e);", "for (auto x : all) atomicAdd(&x, 1);",
    "using F = int; g(F());", "static int n; g(n);",
    "struct S { int a[2]; }; a;",
])
def test_what_is_set_at_once_or_declares_no_local_variable_stays_as_it_is(text):
    assert body(f"__device__ void f() {{ {text} }}") == f"__device__ void f() {{ {text} }}"
    assert body("void host() { float s; s += 1; }") == "void host() { float s; s += 1; }"


def test_pointers_that_are_promised_to_be_apart_are_told_to_the_profiler():
    head = "__global__ void __launch_bounds__(64) k(const float *__restrict__ a, int n, T* __restrict b) {"
    assert body(head + "}") == head + " SIMT_DISTINCT(a, b)}"
    assert body(head.replace("__restrict b", "b") + "}") == head.replace("__restrict b", "b") + "}"


def told(declared, text):
    return lambda: test_a_local_variable_that_may_be_read_before_it_is_set_is_told_to_the_profiler(declared, text)


MUTANTS = [
    Mutant("minillama.simt.cuda_translate", '"utf-8-sig"', '"utf-8"', test_a_byte_order_mark_is_no_part_of_the_program),
    Mutant("minillama.simt.cuda_translate", '(place, len(end[0]), ")")', '(place, 2, ")")',
           lambda: test_a_launch_becomes_two_calls("k<<<1, 2>>>(a);", "k", "1, 2", "(a);")),
    Mutant("minillama.simt.cuda_translate", 'opened in ([], ["<"] * len(opened))', "True",
           lambda: test_a_launch_becomes_two_calls("m<(N > 1)><<<1, 2>>>(a);", "m<(N > 1)>", "1, 2", "(a);")),
    Mutant("minillama.simt.cuda_translate", r"""|"(?:\\.|[^"\\\n])*"'""", "'",
           lambda: test_what_is_no_cuda_stays_as_it_is('"k<<<1, 2>>>(x)"')),
    Mutant("minillama.simt.cuda_translate", 'source.count("\\n") * "\\n"', '""', test_every_line_keeps_its_number),
    Mutant("minillama.simt.cuda_translate", "open_angles(before) < 2", "True",
           lambda: test_what_may_be_no_shift_or_no_device_stays_as_it_is("__device__ void f() { v<w<int>> x; }")),
    Mutant("minillama.simt.cuda_translate", r'''re.sub(r"[^\n]", " ", line[0])''', "line[0]",
           lambda: test_what_may_be_no_shift_or_no_device_stays_as_it_is("__device__ int f() {\n#if 1 << 2\n#endif }")),
    Mutant("minillama.simt.cuda_translate", "(if|else|while", "(else|while",
           told("int u; if (w) u = 2; g(u);", "int u SIMT_LOCAL; SIMT_BEGINS(u) if (w) u = 2; g(u);")),
    Mutant("minillama.simt.cuda_translate", "if not within(members, found.end())", "if True",
           lambda: test_what_is_set_at_once_or_declares_no_local_variable_stays_as_it_is("struct S { int a[2]; }; a;")),
    Mutant("minillama.simt.cuda_translate", "if len(names) > 1 and", "if len(names) > 0 and",
           test_pointers_that_are_promised_to_be_apart_are_told_to_the_profiler),
]
