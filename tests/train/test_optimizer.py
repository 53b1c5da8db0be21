"""AdamW, the schedule and the clipping against PyTorch's own and against the formulas in plain Python floats."""

import math

import pytest
import torch
from mutants import Mutant

from minillama.train.optimizer import AdamW, clip_gradients

SHAPES = [(7, 5), (1,), (13,), (3, 1, 2), (1, 64)]


def two_copies(seed=0, shapes=SHAPES, dtype=torch.float32):
    torch.manual_seed(seed)
    values = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [[torch.nn.Parameter(value.clone()) for value in values] for _ in range(2)]


def give_gradients(*copies, scale=1.0):
    for same in zip(*copies, strict=True):
        gradient = torch.randn(same[0].shape) * scale
        for p in same:
            p.grad = gradient.to(p.dtype, copy=True)


def torch_adamw(parameters, lr, betas, eps, weight_decay):
    groups = [{"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
              {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, foreach=True)


@pytest.mark.parametrize(("betas", "eps", "weight_decay"), [((0.9, 0.95), 1e-8, 0.1), ((0.9, 0.999), 1e-5, 0.0),
                                                            ((0.0, 0.5), 1e-2, 0.5)])
def test_fifty_steps_equal_torch_bit_for_bit(betas, eps, weight_decay):
    ours, theirs = two_copies()
    our_adamw = AdamW(ours, 1e-2, betas, eps, weight_decay)
    their_adamw = torch_adamw(theirs, 1e-2, betas, eps, weight_decay)
    for step in range(50):
        our_adamw.lr = 1e-2 / (1 + step)  # a rate that changes, as in training
        for group in their_adamw.param_groups:
            group["lr"] = our_adamw.lr
        give_gradients(ours, theirs, scale=10.0 ** (step % 5 - 3))
        our_adamw.step()
        their_adamw.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_a_step_is_the_papers_algorithm():
    """Algorithm 2 of arXiv 1711.05101 in Python floats, on fp64 parameters; 1e-12: a few hundred fp64 roundings."""
    lr, beta1, beta2, eps, decay = 0.05, 0.9, 0.95, 1e-3, 0.3
    parameters, _ = two_copies(dtype=torch.float64)
    adamw = AdamW(parameters, lr, (beta1, beta2), eps, decay)
    expected = [[(w, 0.0, 0.0) for w in p.flatten().tolist()] for p in parameters]
    for t in range(1, 8):
        give_gradients(parameters)
        for p, state in zip(parameters, expected, strict=True):
            for i, g in enumerate(p.grad.flatten().tolist()):
                w, m, v = state[i]
                m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
                m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
                w -= lr * (m_hat / (math.sqrt(v_hat) + eps) + (decay * w if p.dim() >= 2 else 0.0))
                state[i] = w, m, v
        adamw.step()
    for p, state in zip(parameters, expected, strict=True):
        assert p.flatten().tolist() == pytest.approx([w for w, _, _ in state], rel=1e-12, abs=1e-12)


def test_vectors_do_not_decay_and_matrices_do():
    (matrix, vector), _ = two_copies(shapes=[(3, 4), (4,)])
    before = matrix.detach().clone(), vector.detach().clone()
    adamw = AdamW([matrix, vector], lr=0.1, weight_decay=0.5)
    matrix.grad, vector.grad = torch.zeros(3, 4), torch.zeros(4)
    adamw.step()
    assert torch.equal(matrix, before[0] * (1 - 0.05)) and torch.equal(vector, before[1])


def test_the_first_step_has_the_length_of_the_rate_whatever_the_gradient():
    """m_hat / sqrt(v_hat) = sign(g) at t = 1: what bias correction is for. 1e-5: eps 1e-8 against |g| = 1e-3."""
    for size in (1e-3, 1.0, 1e3):
        p = torch.nn.Parameter(torch.zeros(2, 2))
        p.grad = torch.tensor([[size, -size], [-size, size]])
        AdamW([p], lr=0.25, weight_decay=0.0).step()
        assert torch.allclose(p, -0.25 * p.grad.sign(), rtol=2e-5)


def test_a_tensor_without_gradient_stands_still_and_so_does_its_clock():
    ours, theirs = two_copies(shapes=[(3, 2), (2, 2)])
    our_adamw, their_adamw = AdamW(ours, 0.1), torch_adamw(theirs, 0.1, (0.9, 0.95), 1e-8, 0.1)
    for step in range(6):
        give_gradients(ours, theirs)
        if step % 2:
            ours[1].grad = theirs[1].grad = None
            before = ours[1].detach().clone()
        our_adamw.step()
        their_adamw.step()
        assert step % 2 == 0 or torch.equal(ours[1], before)
    assert our_adamw.steps == [6, 3]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_saved_state_goes_on_bit_for_bit():
    ours, again = two_copies()
    adamw = AdamW(ours, 1e-2)
    for _ in range(3):
        give_gradients(ours)
        adamw.step()
    for p, q in zip(ours, again, strict=True):
        q.data.copy_(p)
    resumed = AdamW(again, 1e-2)
    resumed.load_state_dict(adamw.state_dict())
    for _ in range(3):
        give_gradients(ours, again)
        adamw.step()
        resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    assert all(a is not b for a, b in zip(adamw.m, resumed.m, strict=True))


def test_the_state_of_another_model_is_refused():
    ours, _ = two_copies()
    others, _ = two_copies(shapes=SHAPES[:-1])
    with pytest.raises(ValueError, match="saved m has shapes"):
        AdamW(others).load_state_dict(AdamW(ours).state_dict())


@pytest.mark.parametrize("damage", [
    {"v": [torch.ones(1, 1), torch.ones(1)]}, {"m": [torch.ones(3, 2), torch.ones(5)]}, {"v": [torch.ones(3, 2)]},
    {"steps": [7]}, {"fp32_weights": []}], ids=str)
def test_a_damaged_state_is_refused_and_nothing_changes(damage):
    """Shapes that would spread over the right ones, too."""
    weights = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(2))]
    adamw = AdamW(weights)
    state, before = adamw.state_dict(), str(adamw.state_dict())
    changed = {"m": [torch.full((3, 2), 5.0), torch.full((2,), 5.0)], "steps": [7, 7]}
    with pytest.raises(ValueError, match="saved (m|v) has shapes|counts"):
        adamw.load_state_dict({**state, **changed, **damage})
    assert str(adamw.state_dict()) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_weights_follow_an_fp32_copy_that_keeps_small_steps(dtype):
    """200 steps of 1e-5 on a weight of 1: each alone would round away (half an ulp of bfloat16 at 1 is 2e-3)."""
    short = torch.nn.Parameter(torch.ones(2, 2, dtype=dtype))
    adamw = AdamW([short], lr=1e-5, weight_decay=0.0)
    for _ in range(200):
        short.grad = torch.ones(2, 2, dtype=dtype)
        adamw.step()
    assert adamw.m[0].dtype == adamw.v[0].dtype == adamw.weights[0].dtype == torch.float32
    assert torch.allclose(adamw.weights[0], torch.full((2, 2), 1 - 200e-5), atol=1e-4)
    assert torch.equal(short, adamw.weights[0].to(dtype))
    resumed = AdamW([torch.nn.Parameter(short.detach().clone())], lr=1e-5)
    resumed.load_state_dict(adamw.state_dict())
    assert torch.equal(resumed.weights[0], adamw.weights[0])


def test_parameters_given_twice_or_none_at_all_are_refused():
    p = torch.nn.Parameter(torch.zeros(2, 2))
    for parameters in ([p, p], [], [torch.zeros(2)]):
        with pytest.raises(ValueError, match="expected one or more, each once"):
            AdamW(parameters)
    for wrong in ({"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": 0.0}, {"weight_decay": -0.1}, {"lr": math.nan}):
        with pytest.raises(ValueError, match="allowed are"):
            AdamW([p], **wrong)


def test_zero_grad_forgets():
    p = torch.nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    AdamW([p]).zero_grad()
    assert p.grad is None


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e6, math.inf])
def test_clipping_equals_torch_bit_for_bit(max_norm):
    ours, theirs = two_copies()
    give_gradients(ours, theirs)
    ours[1].grad = theirs[1].grad = None
    assert torch.equal(clip_gradients(ours, max_norm), torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is None and b.grad is None or torch.equal(a.grad, b.grad)


def test_clipping_shortens_all_gradients_by_one_factor_and_never_lengthens():
    parameters, _ = two_copies()
    give_gradients(parameters)
    before = torch.cat([p.grad.flatten() for p in parameters])
    assert clip_gradients(parameters, 100.0) == pytest.approx(before.norm().item(), rel=1e-5)
    assert torch.equal(torch.cat([p.grad.flatten() for p in parameters]), before)
    clip_gradients(iter(parameters), 0.5)
    after = torch.cat([p.grad.flatten() for p in parameters])
    assert torch.allclose(after, before * (0.5 / before.norm()), rtol=1e-5)


def test_the_norm_of_short_gradients_is_summed_in_fp32():
    """300 ones: in bfloat16, with its 8 bits, a running sum of ones would stick at 256."""
    p = torch.nn.Parameter(torch.zeros(300, dtype=torch.bfloat16))
    q = torch.nn.Parameter(torch.zeros(1))
    p.grad, q.grad = torch.ones(300, dtype=torch.bfloat16), torch.ones(1)
    assert clip_gradients([p, q], 1.0).item() == pytest.approx(math.sqrt(301), rel=1e-6)
    assert clip_gradients([torch.nn.Parameter(torch.zeros(1))], 1.0).item() == 0.0


def _mutant(old, new, law):
    return Mutant("minillama.train.optimizer", old, new, law)


def fifty_steps():
    test_fifty_steps_equal_torch_bit_for_bit((0.9, 0.95), 1e-8, 0.1)


MUTANTS = [
    _mutant("if self.parameters[i].dim() >= 2]", "if self.parameters[i].dim() >= 0]",
            test_vectors_do_not_decay_and_matrices_do),
    _mutant("1 - self.lr * self.weight_decay", "1 - self.weight_decay", fifty_steps),
    _mutant("[-self.lr / (1 - self.betas[0] ** self.steps[i]) for", "[-self.lr for",
            test_the_first_step_has_the_length_of_the_rate_whatever_the_gradient),
    _mutant("(1 - self.betas[1] ** self.steps[i]) ** 0.5", "1.0",
            test_the_first_step_has_the_length_of_the_rate_whatever_the_gradient),
    _mutant("        root = torch._foreach_sqrt(v)\n", "        torch._foreach_add_(v, self.eps)\n"
            "        root = torch._foreach_sqrt(v)\n", test_a_step_is_the_papers_algorithm),
    _mutant("torch._foreach_add_(root, self.eps)", "pass", test_a_step_is_the_papers_algorithm),
    _mutant("gradients, gradients, 1 - self.betas[1])", "gradients, gradients, 1.0)", fifty_steps),
    _mutant('for key in ("m", "v"):', 'for key in ("m",):', lambda: test_a_damaged_state_is_refused_and_nothing_changes(
        {"v": [torch.ones(1, 1), torch.ones(1)]})),
    _mutant("self.steps = list(state[\"steps\"])", "pass", test_a_saved_state_goes_on_bit_for_bit),
    _mutant("self.v[i].copy_(state[\"v\"][i])", "pass", test_a_saved_state_goes_on_bit_for_bit),
    _mutant("p.detach().float()", "p",
            lambda: test_short_weights_follow_an_fp32_copy_that_keeps_small_steps(torch.bfloat16)),
    _mutant("torch.linalg.vector_norm(torch.stack(", "torch.max(torch.stack(",
            test_clipping_shortens_all_gradients_by_one_factor_and_never_lengthens),
    _mutant(".clamp(max=1.0)", "", test_clipping_shortens_all_gradients_by_one_factor_and_never_lengthens),
    _mutant("dtype=wide", "dtype=None", test_the_norm_of_short_gradients_is_summed_in_fp32),
]
