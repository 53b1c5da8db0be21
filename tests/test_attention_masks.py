"""The CUDA kernels of flash attention behind a mask, run by the emulator: padding, packed documents, any holes."""

import math
import shutil
import sys

import pytest
import torch
from mutants import Mutant
from test_attention_decoding import masks
from test_attention_kernel import random_inputs, with_gradients

from minillama import kernels
from minillama.attention import attention
from minillama.backends import use_kernels
from minillama.config import ModelConfig
from minillama.generate import generate_tokens
from minillama.parity.kernels_verify import attend_by_formula
from minillama.sampling import Sampling
from minillama.transformer import Transformer

pytestmark = pytest.mark.skipif(
    "simt" not in kernels.built_backends(), reason=f"the kernels are not built: {kernels.BUILD}"
)
KERNELS = "flash_attention", "flash_gradients"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def law_holds(inputs, causal, mask):
    """Output and gradients within what the arithmetic allows each number, as in `kernels verify`."""
    direction = torch.randn(inputs[0].shape).to(inputs[0].dtype)
    ours = with_gradients(lambda *x: kernels.flash_attention(*x, causal, mask), inputs, direction)
    bounds = attend_by_formula(*(x.detach() for x in inputs), direction, causal, plain=False, mask_BTS=mask)
    for (name, bound), found in zip(bounds.items(), ours, strict=True):
        bound = bound if bound.dtype == found.dtype else bound.stored(found.dtype)
        beyond = float(((found.double() - bound.value).abs() / bound.error.clamp(min=1e-300)).max())
        assert beyond <= 1, f"{name}: {beyond:.1f} bounds"  # NaN too


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(("T", "S"), [(1, 33), (5, 2), (17, 17), (66, 70), (70, 130), (130, 67)])
def test_any_mask_keeps_the_law_at_odd_lengths(T, S, number, causal):
    """Version 1 in fp32 and version 2 in 16 bits: tiles cut by masks, by the diagonal and by both ends."""
    mask = list(masks(2, T, S))[number]
    for dtype, d in ((torch.float32, 12), (torch.bfloat16, 16)):
        law_holds(random_inputs(2, 2, 1, T, S, d, dtype), causal, mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [8, 32, 64, 80, 96, 128, 131, 192, 256])
def test_every_width_and_dtype_keeps_the_law(d, dtype):
    mask = torch.rand(1, 67, 70, generator=torch.Generator().manual_seed(d)) < 0.4
    law_holds(random_inputs(1, 3, 1, 67, 70, d, dtype), True, mask)


@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, 8), (torch.bfloat16, 16), (torch.bfloat16, 160)])
def test_packed_documents_are_what_each_is_alone(dtype, d):
    lengths = 70, 3, 65, 40
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    mask = (ids[:, None] == ids[None])[None]
    inputs = random_inputs(1, 2, 1, len(ids), len(ids), d, dtype)
    direction = torch.randn(1, 2, len(ids), d).to(dtype)
    together = with_gradients(lambda *x: kernels.flash_attention(*x, mask_BTS=mask), inputs, direction)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = [x.detach()[:, :, part].requires_grad_() for x in inputs]
        wide = [x.detach() for x in alone]
        bounds = attend_by_formula(*wide, direction[:, :, part], True, plain=False)
        for (name, bound), found in zip(bounds.items(), together, strict=True):
            bound = bound if bound.dtype == dtype else bound.stored(dtype)
            assert ((found[:, :, part].double() - bound.value).abs() <= bound.error).all(), name
        start += length


@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, 8), (torch.bfloat16, 16), (torch.bfloat16, 128),
                                         (torch.bfloat16, 200)])
def test_of_64_keys_the_last_32_may_be_all_that_is_seen(dtype, d):
    """A word of the mask that is 0 says nothing of the next one."""
    mask = (torch.arange(130) % 64 >= 32).expand(1, 1, 130)
    law_holds(random_inputs(1, 2, 1, 70, 130, d, dtype), False, mask)


@pytest.mark.parametrize("d", [16, 128, 136])
def test_tiles_that_nobody_sees_are_not_read(d):
    """NaN in 64 keys and values that a mask hides reaches neither out nor gradients, and theirs are 0; so for queries
    that see nothing."""
    inputs = [x.detach() for x in random_inputs(1, 2, 1, 192, 192, d, torch.bfloat16)]
    hidden = torch.zeros(192, dtype=torch.bool)
    hidden[64:128] = True
    mask = (~hidden[:, None] & ~hidden[None])[None]
    direction = torch.randn(1, 2, 192, d).bfloat16()

    def found(inputs):
        return with_gradients(lambda *x: kernels.flash_attention(*x, True, mask),
                              [x.requires_grad_() for x in inputs], direction)

    clean = found([x.clone() for x in inputs])
    for x in inputs[1:]:
        x[:, :, 64:128] = math.nan
    again = found(inputs)
    assert all(torch.equal(a, b) for a, b in zip(clean, again, strict=True))
    assert all((x[:, :, 64:128] == 0).all() for x in again)


@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, 8), (torch.bfloat16, 16), (torch.bfloat16, 131)])
def test_a_query_that_sees_nothing_gives_zeros_and_takes_no_gradient(dtype, d):
    q, k, v = random_inputs(2, 2, 1, 70, 70, d, dtype)
    mask = torch.rand(2, 70, 70, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, 5], mask[1, 20:] = False, False
    mask[:, :5, :5] |= torch.eye(5, dtype=torch.bool)
    out, lse, _ = torch.ops.minillama_simt.flash_attention(q, k, v, True, mask)
    blind = ~(mask & torch.ones(70, 70, dtype=torch.bool).tril()).any(-1)[:, None].expand(2, 2, 70)
    assert blind.any() and torch.equal((out == 0).all(-1), blind) and torch.equal(lse == math.inf, blind)
    (dq,) = torch.autograd.grad(out.sum(), q)
    assert dq.isfinite().all() and (dq[blind] == 0).all() and (dq[~blind] != 0).any()


@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, 5), (torch.bfloat16, 16)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_seen_and_not_a_number_makes_nan_and_no_more_than_written_out(which, value, dtype, d):
    inputs = [x.detach() for x in random_inputs(1, 2, 1, 18, 21, d, dtype)]
    mask = torch.rand(1, 18, 21, generator=torch.Generator().manual_seed(1)) < 0.5
    inputs[which][0, 0, 4, 2] = value
    inputs, direction = [x.requires_grad_() for x in inputs], torch.ones(1, 2, 18, d)
    ours, may = (with_gradients(lambda *x, attend=attend: attend(*x, False, mask), inputs, direction)
                 for attend in (kernels.flash_attention, attention))
    sees = mask[0, :, 4]  # the key that is no number
    must = ours[0][0, 0][sees] if which else ours[0][0, 0, 4][None]
    assert which == 1 and value == math.inf or not must.isfinite().all(-1).any()
    for name, o, x in zip(("out", "dq", "dk", "dv"), ours, may, strict=True):
        assert (o.isfinite() | ~x.isfinite()).all(), f"{name} is not finite where plain attention is"


def test_a_mask_has_any_strides():
    inputs, direction = random_inputs(2, 2, 1, 37, 41, 16, torch.bfloat16), torch.ones(2, 2, 37, 16)
    mask = torch.rand(2, 37, 41, generator=torch.Generator().manual_seed(2)) < 0.5

    def found(mask):
        return with_gradients(lambda *x: kernels.flash_attention(*x, True, mask), inputs, direction)

    wide = torch.zeros(2, 74, 82, dtype=torch.bool)
    wide[:, 1::2, 1::2] = mask
    for same in (mask.mT.contiguous().mT, wide[:, 1::2, 1::2]):
        assert all(torch.equal(a, b) for a, b in zip(found(mask), found(same), strict=True))
    for narrow in (mask[:1, :1], mask[:, :1], mask[:1], mask[:, :, :1]):
        whole = narrow.expand(2, 37, 41).clone()
        assert all(torch.equal(a, b) for a, b in zip(found(narrow), found(whole), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_of_ones_changes_no_bit(dtype):
    inputs, direction = random_inputs(1, 2, 1, 70, 90, 16, dtype), torch.ones(1, 2, 70, 16)
    plain, masked = (with_gradients(lambda *x, m=m: kernels.flash_attention(*x, True, m), inputs, direction)
                     for m in (None, torch.ones(1, 1, 90, dtype=torch.bool)))
    assert all(torch.equal(a, b) for a, b in zip(plain, masked, strict=True))


def test_a_mask_of_another_shape_or_dtype_is_refused():
    q = torch.zeros(1, 1, 2, 4)
    with pytest.raises(RuntimeError, match=r"mask has shape \[1, 3, 2\], wanted \(1, 2, 2\), or 1s in it"):
        kernels.flash_attention(q, q, q, mask_BTS=torch.ones(1, 3, 2, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="mask has dtype Float, wanted Bool"):
        kernels.flash_attention(q, q, q, mask_BTS=torch.ones(1, 2, 2))


def test_the_operators_pass_pytorchs_own_check_and_compile_into_one_graph():
    inputs, mask = random_inputs(1, 2, 1, 5, 6, 8, torch.bfloat16), torch.ones(1, 5, 6, dtype=torch.bool).tril(1)
    torch.library.opcheck(torch.ops.minillama_simt.flash_attention.default, (*inputs, True, mask))
    function = torch.compile(lambda q, k, v, mask: kernels.flash_attention(q * 2, k, v, mask_BTS=mask).square().sum(),
                             fullgraph=True, backend="aot_eager")
    q, k, v = inputs
    ours = torch.autograd.grad(function(*inputs, mask), inputs)
    wanted = torch.autograd.grad(kernels.flash_attention(q * 2, k, v, mask_BTS=mask).square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_any_order_of_threads_gives_the_same_bits():
    inputs, direction = random_inputs(1, 2, 1, 70, 80, 16, torch.bfloat16), torch.ones(1, 2, 70, 16)
    mask = list(masks(1, 70, 80))[4]

    def found():
        return with_gradients(lambda *x: kernels.flash_attention(*x, True, mask), inputs, direction)

    first = found()
    for order in ("reverse", *(f"shuffle:{seed}" for seed in range(12))):
        with kernels.schedule(order):
            assert all(torch.equal(a, b) for a, b in zip(first, found(), strict=True))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                    reason="the profiler is compiled on the spot by g++, on Linux")
@pytest.mark.parametrize("d", [64, 128])
def test_of_packed_documents_only_their_own_tiles_are_copied_and_multiplied(d):
    """Four documents of 64 tokens cost four times one of them, not sixteen; no race, no bank waits."""
    def counted(T, mask):
        q, k, v = (x.bfloat16().requires_grad_() for x in random_inputs(1, 2, 1, T, T, d, torch.float32))
        with kernels.profile() as p:
            torch.autograd.grad(kernels.flash_attention(q, k, v, False, mask).sum(), [q, k, v])
        assert p.findings == [] and p.shared_load.conflicts == p.shared_store.conflicts == 0
        return p.events("mma_"), [p.total("global", "load", name).sectors for name in KERNELS]

    ids = torch.arange(256) // 64
    one, four = counted(64, torch.ones(1, 1, 64, dtype=torch.bool)), counted(256, (ids[:, None] == ids)[None])
    assert four[0] == 4 * one[0]
    for name, alone, together in zip(KERNELS, one[1], four[1], strict=True):
        tile = 2 * 2 * 32 * d // 32  # sectors of 32 keys and values, or queries and gradients, the smallest
        sums = 2 * 128 * 4 * d // 32 if name == "flash_gradients" else 0  # of dQ: what keys 128 ... leave to the first
        assert together - sums - 4 * alone < 8 * tile, f"{name} copies what it does not multiply"  # 4 blocks, 2 heads


def small_model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(32, 2, 4, 61, n_kv_heads=2, hidden_dim=48, max_seq_len=96)).eval()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("which", ["packed", "padded"])
def test_packed_and_padded_rows_have_the_references_loss_and_gradients(which, checkpointing):
    model, tokens = small_model().train(), torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0] * 9 + [1] * 20 + [2] * 11, [0] * 40])
    how = {"document_ids_BT": ids} if which == "packed" else {"left_pad_B": torch.tensor([0, 13])}
    found = []
    for backend in ("reference", "simt"):
        use_kernels(model, backend).gradient_checkpointing = checkpointing
        loss = model(tokens, **how).log_softmax(-1)[..., 3].mean()
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, a.abs().max().item())


def test_a_padded_batch_writes_the_references_text():
    prompts, settings = [[1] * 30 + [5, 6], [3, 4, 9], [7] * 12], Sampling(temperature=0.0)
    model = small_model()
    texts = [list(generate_tokens(use_kernels(model, backend), prompts, 12, settings))
             for backend in ("reference", "simt")]
    assert texts[0] == texts[1]


MUTANTS = [] if "simt" not in kernels.built_backends() else [
    Mutant("minillama.kernels", "*tensors, ctx.causal, mask), None, None", "*tensors, ctx.causal, None), None, None",
           lambda: test_every_width_and_dtype_keeps_the_law(8, torch.float32)),
    Mutant("minillama.cuda_attention", "return kernels.flash_attention(q_BHTd, k_BKSd, v_BKSd, causal, mask_BTS,",
           "return kernels.flash_attention(q_BHTd, k_BKSd, v_BKSd, causal, None,",
           test_a_padded_batch_writes_the_references_text),
]
