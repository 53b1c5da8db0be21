"""PTX instruction by instruction: what each means in C++ (see inline_ptx, which finds the operands)."""

import re

from minillama.simt.ptx_tables import ATOMIC, BINARY, COMPARE, FORMS, HINTS, MATH, MMA, SPACES, TYPES, UnsupportedPtx

PLAIN = ("rn", "ftz", "approx", "full", "sat", "lo")  # modifiers that arithmetic may carry
FLOATS = ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")


def translate(s, opcode, args):
    """The C++ statement of one instruction; `s` is the asm statement it stands in."""
    name, *mods = opcode.split(".")
    handler = HANDLERS.get(name)
    args = [] if args == [""] else args
    try:
        done = _whole(s, opcode, args)
        if done is None and handler:
            done = handler(s, name, mods, args)
    except (IndexError, KeyError, ValueError) as wrong:
        if isinstance(wrong, UnsupportedPtx):
            raise UnsupportedPtx(f"{opcode} {wrong}") from wrong
        done = None
    if done is None:
        raise UnsupportedPtx(opcode)
    return done


def _whole(s, opcode, args):
    """The statement of an instruction whose C++ stands in FORMS with as many operands; None of others."""
    for form, meaning in FORMS.items():
        if found := re.fullmatch(form.replace(".", "[.]"), opcode):
            meaning = re.sub(r"\$(\d)", lambda group, found=found: found[int(group[1])], meaning)
            target, operands = meaning.startswith("= "), [int(place) for place in re.findall(r"\{(\d)", meaning)]
            if (target or operands) and len(args) != 1 + max(operands, default=0):
                return None
            cpp = re.sub(r"\{(\d):?(\w*)\}", lambda operand: s.read(operand[2], args[int(operand[1])]) if operand[2]
                         else s.value(args[int(operand[1])]), meaning)
            return s.write(args[0], cpp[2:]) if target else cpp
    return None


def _type_of(mods, allowed=()):
    """The type that ends the modifiers; ValueError if another modifier is not allowed."""
    if mods[-1] not in TYPES or any(m not in allowed for m in mods[:-1]):
        raise ValueError(mods)
    return mods[-1]


def _let(s, kind, args, expression, names="abc"):
    """{ T a = ..., b = ...; d = expression; }"""
    values = " ".join(f"const {TYPES[kind]} {n} = {s.read(kind, a)};" for n, a in zip(names, args[1:], strict=False))
    return f"{{ {values} {s.write(args[0], expression)} }}"


def _arithmetic(s, name, mods, args):
    kind = _type_of(mods, PLAIN)
    if kind not in FLOATS and set(mods) & {"sat", "approx"} or (len(args) != 3):
        return None
    if kind in ("b32", "b64", "b16") and name in ("min", "max", "div", "rem") or "sat" in mods and kind != "f32":
        return None
    saturated = "__saturatef({})" if "sat" in mods else "{}"
    expression = {"mul": "a * b", "div": "a / b", "min": "simt::ptx::least(a, b)",
                  "max": "simt::ptx::most(a, b)"}.get(name) or BINARY[name]
    if kind not in FLOATS and name in ("add", "sub", "mul"):
        if name == "mul" and "lo" not in mods:
            return None
        kind = kind.replace("s", "u")  # the same bits, and no overflow that C++ leaves undefined
    if "rn" in mods:  # a rounding that is named is kept: no other addition or product joins it
        expression = "simt::unfused({})".format(re.sub(r"\b[ab]\b", r"simt::unfused(\g<0>)", expression))
    return _let(s, kind, args, saturated.format(f"{TYPES[kind]}({expression})"))


def _multiply(s, name, mods, args):
    """mul, mad and fma in all widths."""
    how, kind = [m for m in mods if m in ("hi", "wide")], _type_of(mods, (*PLAIN, "hi", "wide"))
    if not how and name == "mul":
        return _arithmetic(s, name, mods, args)
    if kind in FLOATS:
        saturated = "__saturatef({})" if "sat" in mods else "{}"
        if how or len(args) != 4 or ("sat" in mods and kind != "f32"):
            return None
        return _let(s, kind, args, saturated.format("simt::ptx::fused(a, b, c)"))
    if "sat" in mods or not how and "lo" not in mods:
        return None
    product = f"simt::ptx::{how[0] if how else 'low'}(a, b)"
    if name == "mad":
        result = f"decltype({product})"
        last = args.pop()
        product = f"{result}({product} + simt::ptx::as<{result}>({s.value(last)}))"
    return _let(s, kind, args, product)


def _unary(s, name, mods, args):
    kind = _type_of(mods, PLAIN)
    expression = {"neg": "-a", "not": "~a", "abs": "a < 0 ? -a : a", "cnot": "a == 0", "popc": "simt::ptx::count(a)",
                  "clz": "simt::ptx::leading_zeros(a)", "brev": "simt::ptx::reversed(a)"}.get(name) or MATH[name]
    if name == "not" and kind == "pred":
        expression = "!a"
    if name in MATH and kind not in ("f32", "f64"):
        return None
    return _let(s, kind, args, f"uint32_t({expression})" if name in ("popc", "clz") else f"{TYPES[kind]}({expression})")


def _mov(s, _, mods, args):
    kind = _type_of(mods)
    if args[0].startswith("{"):
        parts = s.list(args[0])
        bits = int(kind[1:]) // len(parts)
        return f"{{ const uint64_t a = {s.read(kind, args[1])}; " + " ".join(
            s.write(part, f"uint{bits}_t(a >> {bits * i})") for i, part in enumerate(parts)) + " }"
    if args[1].startswith("{"):
        parts = s.list(args[1])
        bits = int(kind[1:]) // len(parts)
        return s.write(args[0], " | ".join(f"{TYPES[kind]}({s.read(f'u{bits}', part)}) << {bits * i}"
                                           for i, part in enumerate(parts)))
    return s.write(args[0], s.read(kind, args[1]))


def _convert(s, _, mods, args):
    *how, to, of = mods
    known = ("rn", "rz", "rna", "rni", "rzi", "rmi", "rpi", "ftz", "sat")
    if to not in TYPES or to == "tf32" or of not in TYPES or len(args) != 2 or any(m not in known for m in how):
        return None
    value, rounded = s.read(of, args[1]), [m for m in how if m in ("rni", "rzi", "rmi", "rpi")]
    if rounded:
        call = {"rni": "std::nearbyint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}[rounded[0]]
        value = f"{call}({value})"
        if to not in FLOATS:
            return s.write(args[0], f"::simt::to_integer<{TYPES[to]}>({value})")
    elif of in FLOATS and to not in FLOATS or ("sat" in how and to not in FLOATS):
        return None
    elif "rz" in how and not (of == "f32" and to == "f64"):
        return None
    value = f"{TYPES[to]}({'float(' + value + ')' if of in ('f16', 'bf16') else value})"
    return s.write(args[0], f"__saturatef({value})" if "sat" in how else value)


def _compare(s, _, mods, args):
    """setp.lt{.and}.s32 p|q, a, b{, c}"""
    test, *rest = mods
    join, kind = [m for m in rest if m in ("and", "or", "xor")], _type_of(rest, ("and", "or", "xor", "ftz"))
    also = f" {dict(and_='&', or_='|', xor_='^')[join[0] + '_']} {s.value(args[3])}" if join else ""
    yes, *no = args[0].split("|")
    let_ = f"const {TYPES[kind]} a = {s.read(kind, args[1])}, b = {s.read(kind, args[2])};"
    return (f"{{ {let_} const bool yes = {COMPARE[test]}; {s.write(yes, 'yes' + also)} "
            + (s.write(no[0], "!yes" + also) if no else "") + " }")


def _memory(s, name, mods, args):
    """ld and st, also of vectors."""
    space, kind = any(m in SPACES for m in mods), _type_of(mods, (*HINTS, *SPACES, "v2", "v4"))
    target, source = (args[0], args[1]) if name != "st" else (args[1], args[0])
    parts, vector = s.list(target), next((int(m[1:]) for m in mods if m in ("v2", "v4")), 1)
    if len(args) != 2 or len(parts) != vector:
        return None
    pack = f"simt::ptx::Pack<{TYPES[kind]}, {vector}>"
    if name == "st":
        values = ", ".join(s.read(kind, part) for part in parts)
        return f"simt::ptx::store({s.pointer(space, pack, source)}, {pack}{{{{{values}}}}});"
    wide = "" if kind in FLOATS else "simt::ptx::extend"  # a narrow number fills its register
    return f"{{ const auto got = simt::ptx::load({s.pointer(space, 'const ' + pack, source)}); " + " ".join(
        s.write(part, f"{wide}(got.part[{i}])") for i, part in enumerate(parts)) + " }"


def _atomic(s, name, mods, args):
    space, what = any(m in SPACES for m in mods), [m for m in mods if m in ATOMIC or m == "cas"][0]
    kind = _type_of(mods, (*HINTS, *SPACES, "noftz", what))
    target, rest = (None, args) if name == "red" else (args[0], args[1:])
    values = ", ".join(s.read(kind, a) for a in rest[1:])
    done = f"atomic{'CAS' if what == 'cas' else ATOMIC[what]}({s.pointer(space, TYPES[kind], rest[0])}, {values})"
    return s.write(target, done) if target else f"{done};"


def _cvta(s, _, mods, args):
    shared, to = any(m in SPACES for m in mods), "to" in mods
    _type_of(mods, (*SPACES, "to", "global", "local", "const", "param"))
    value = s.read("u64", args[1])
    if shared:
        value = (f"simt::shared_address(simt::ptx::generic({value}), simt::Where::here())" if to
                 else f"uint64_t(simt::ptx::shared({value}))")
    return s.write(args[0], value)


def _cp_async(s, _, mods, args):
    if mods[0] != "async" or mods[1] not in ("ca", "cg") or any(
            m not in (*SPACES, "global", "L2::64B", "L2::128B", "L2::256B") for m in mods[2:]):
        return None
    bytes_ = f"int({s.value(args[2])})"
    wanted = f"int({s.value(args[3])})" if len(args) > 3 else bytes_
    return (f"simt::ptx::copy_async({s.pointer(True, 'void', args[0])}, {s.pointer(False, 'const void', args[1])}, "
            f"{bytes_}, {wanted}, {16 if mods[1] == 'cg' else 4});")


def _ldmatrix(s, _, mods, args):
    wanted = {"sync", "aligned", "m8n8", "b16"}
    count = [m for m in mods if m in ("x1", "x2", "x4")]
    if not wanted <= set(mods) or set(mods) - wanted - {*SPACES, "trans", "x1", "x2", "x4"} or len(count) != 1:
        return None
    parts, number = s.list(args[0]), int(count[0][1:])
    if len(parts) != number:
        return None
    return (f"{{ unsigned got[{number}]; simt::ptx::ldmatrix<{number}>(got, {s.pointer(True, 'const void', args[1])}, "
            f"{'true' if 'trans' in mods else 'false'}); "
            + " ".join(s.write(part, f"got[{i}]") for i, part in enumerate(parts)) + " }")


def _mma(s, _, mods, args):
    if mods[:2] != ["sync", "aligned"] or mods[3:5] != ["row", "col"] or len(args) != 4:
        return None
    rest = [m for m in mods[5:] if m != "satfinite"]
    bits, decode, of = MMA[(mods[2], *rest)]
    if len(rest) != len(mods[5:]):
        return None
    parts, kind = s.list(args[0]), "u32" if of == "f16" else of
    sizes = [len(s.list(a)) for a in args]
    depth = int(mods[2].split("k")[1]) * bits // 128
    if sizes != [4 if of != "f16" else 2, 2 * depth, depth, sizes[0]]:
        return None
    total = {"f32": "float", "s32": "int", "f16": "__half"}[of]
    return (f"{{ const unsigned a[] = {s.array('u32', args[1])}, b[] = {s.array('u32', args[2])}; "
            f"{TYPES[kind]} c[] = {s.array(kind, args[3])}; simt::ptx::mma<{bits}, {total}>(c, a, b, {decode}); "
            + " ".join(s.write(part, f"c[{i}]") for i, part in enumerate(parts)) + " }")


def _shuffle(s, _, mods, args):
    if len(mods) != 3 or mods[0] != "sync" or mods[1] not in ("up", "down", "bfly", "idx") or mods[2] not in (
            "b32", "u32", "s32", "f32") or len(args) != 5:
        return None
    target, *inside = args[0].split("|")
    values = ", ".join(s.read("u32", a) for a in args[1:])
    return (f"{{ bool inside; const uint32_t got = simt::ptx::shfl('{mods[1][0]}', inside, {values}); "
            + s.write(target, "got") + (s.write(inside[0], "inside") if inside else "") + " }")


def _barrier(s, _, mods, args):
    if mods in (["sync"], ["sync", "aligned"], ["cta", "sync"], ["cta", "sync", "aligned"]) and args == ["0"]:
        return "__syncthreads();"
    return None


def _nothing(s, name, mods, args):
    """Fences and hints: memory is in order here, and there are no caches; the profiler hears of fences."""
    known = set(mods) <= {"cta", "gl", "sys", "gpu", "sc", "acq_rel", "global", "L1", "L2", *SPACES}
    return "::simt::fence();" * (name in ("membar", "fence")) if known else None


HANDLERS = {
    **dict.fromkeys(("add", "sub", "and", "or", "xor", "rem", "div", "min", "max"), _arithmetic),
    **dict.fromkeys(("mul", "mad", "fma"), _multiply),
    **dict.fromkeys(("neg", "not", "abs", "cnot", "popc", "clz", "brev", *MATH), _unary),
    "mov": _mov, "cvt": _convert, "setp": _compare, **dict.fromkeys(("ld", "ldu", "st"), _memory),
    **dict.fromkeys(("atom", "red"), _atomic), "cvta": _cvta, "cp": _cp_async, "ldmatrix": _ldmatrix, "mma": _mma,
    "shfl": _shuffle, **dict.fromkeys(("bar", "barrier"), _barrier),
    **dict.fromkeys(("membar", "fence", "prefetch", "prefetchu"), _nothing),
}
