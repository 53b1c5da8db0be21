"""Checks of exercise 15: clipping by hand, AdamW against PyTorch's own, step by step."""
import torch

from minillama.course.exercise import Wrong, close

HINTS = {
    "clip": ("One factor for all tensors: the norm is that of all numbers together, not of each tensor.",
             "Gradients that are short enough must not be touched; all zeros are.",
             "norm = sqrt(sum of all squares); factor = max_norm / norm where norm is larger than max_norm"),
    "first_step": ("In the first step m / (1 - beta1) is the gradient itself, so the step is lr times its sign.",
                   "v holds squares of the gradient; its root stands below, and eps is added to the root."),
    "many_steps": ("m and v live on between steps; t counts from 1.",
                   "The correction at step t divides by 1 - beta^t.",
                   "The learning rate is read anew at each step."),
    "decay": ("The decay is lr times decay times the weight, and never enters m or v.",
              "Vectors and single numbers do not decay, matrices do."),
    "no_gradient": ("A parameter without a gradient is passed over: no decay, and its own t stays.",),
}


def tensors(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def check_clip(learner):
    a, b = torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([[4.0]], dtype=torch.float64)
    close("the norm of (3, 0) and (4)", learner.clip_gradients([a, b], 1.0), 5.0, 1e-12, 0)
    close("(3, 0) after clipping to 1", a, torch.tensor([0.6, 0.0], dtype=torch.float64), 1e-6, 0)
    close("(4) after clipping to 1", b, torch.tensor([[0.8]], dtype=torch.float64), 1e-6, 0)
    short = torch.tensor([0.3, -0.4], dtype=torch.float64)
    close("the norm of a short one", learner.clip_gradients([short], 1.0), 0.5, 1e-12, 2)
    close("a short one", short, torch.tensor([0.3, -0.4], dtype=torch.float64), 0, 1)
    zero = torch.zeros(3, dtype=torch.float64)
    close("the norm of zeros", learner.clip_gradients([zero], 1.0), 0.0, 0, 1)
    close("zeros after clipping", zero, torch.zeros(3, dtype=torch.float64), 0, 1)


def compare(learner, shapes, steps, decay, hint, skip=(), lrs=(0.1,)):
    mine = [p.requires_grad_() for p in tensors(0, *shapes)]
    theirs = [p.requires_grad_() for p in tensors(0, *shapes)]
    groups = [{"params": [p for p in theirs if p.dim() >= 2], "weight_decay": decay},
              {"params": [p for p in theirs if p.dim() < 2], "weight_decay": 0.0}]
    wanted = torch.optim.AdamW([group for group in groups if group["params"]], lr=lrs[0], betas=(0.9, 0.95), eps=1e-8)
    optimizer = learner.AdamW(mine, lr=lrs[0], decay=decay)
    for step in range(steps):
        optimizer.lr = lrs[step % len(lrs)]
        for group in wanted.param_groups:
            group["lr"] = lrs[step % len(lrs)]
        for i, gradient in enumerate(tensors(step + 1, *shapes)):
            mine[i].grad = theirs[i].grad = None if (i, step) in skip else gradient
        optimizer.step()
        wanted.step()
        for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
            close(f"tensor {i} after step {step + 1}", p.detach(), q.detach(), 1e-9, hint)


def check_first_step(learner):
    compare(learner, [(1,)], 1, 0.0, 0)
    compare(learner, [(3,), (1,)], 1, 0.0, 1)


def check_many_steps(learner):
    compare(learner, [(4,), (3, 2)], 7, 0.0, 1)
    compare(learner, [(3, 2)], 6, 0.0, 2, lrs=(0.1, 0.01, 0.5))


def check_decay(learner):
    compare(learner, [(3, 2)], 4, 0.5, 0)
    compare(learner, [(3, 2), (4,), ()], 4, 0.5, 1)


def check_no_gradient(learner):
    try:
        compare(learner, [(3, 2), (4,)], 5, 0.5, 0, skip={(0, 0), (0, 3), (1, 2)})
    except (TypeError, AttributeError) as error:
        raise Wrong(f"a parameter whose grad is None: {error}", 0) from None


WRONG = [
    ("    if norm > max_norm:\n        for g in gradients:\n            g.mul_(max_norm / norm)",
     "    for g in gradients:\n        g.mul_(max_norm / norm)", "clip", 1),
    ("g.mul_(max_norm / norm)", "g.mul_(min(1.0, max_norm / g.norm()))", "clip", 0),
    ("(square.sqrt() + self.eps)", "(square + self.eps)", "first_step", 0),
    ("(1 - self.betas[0] ** self.t[i])", "(1 - self.betas[0])", "many_steps", 1),
    ("p.mul_(1 - self.lr * self.decay)", "p.mul_(1 - self.decay)", "decay", 0),
    ("if p.dim() >= 2:", "if p.dim() >= 1:", "decay", 1),
    ("if p.grad is None:", "if False:", "no_gradient", 0),
    ("            self.t[i] += 1\n", "            self.t = [t + 1 for t in self.t] if i == 0 else self.t\n",
     "no_gradient", 0),
    (" ** 0.5\n", "\n", "clip", 0),
    ("return norm", "return max_norm", "clip", 0),
    ("+ (1 - self.betas[0]) * p.grad\n", "+ p.grad\n", "first_step", 0),
    ("p.grad**2", "p.grad", "first_step", 0),
    ("p.sub_(", "p.add_(", "first_step", 0),
    ("(1 - self.betas[1] ** self.t[i])", "(1 - self.betas[1])", "many_steps", 1),
]
