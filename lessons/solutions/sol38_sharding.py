"""The solution of lessons/exercises/ex38_sharding.py: bytes of the stages, a padded ring, a clipped step."""

from torch.nn.functional import pad


def held_and_sent(stage, N, P):
    """Each stage cuts one part more; stage 3 gathers the weights twice."""
    adam = 8 * N // (P if stage >= 1 else 1)
    gradients = 4 * N // (P if stage >= 2 else 1)
    weights = 4 * N // (P if stage >= 3 else 1)
    halves = 3 if stage == 3 else 2
    return weights + gradients + adam, halves * (P - 1) * 4 * N // P


def mean_scatter(link, g):
    """The lesson's reduce-scatter on equal pieces, divided by the number of processes."""
    P, r = link.size, link.rank
    pieces = list(pad(g, (0, -len(g) % P)).view(P, -1))
    for step in range(1, P):
        link.send(pieces[(r - step) % P], (r + 1) % P)
        i = (r - step - 1) % P
        pieces[i] = pieces[i] + link.receive(pieces[i], (r - 1) % P)
    return pieces[r] / P


def clipped_step(link, w, g, max_norm, update, mean_scatter, all_gather):
    """One number of each process makes the norm; the pieces of the weights go around as they are updated."""
    mean = mean_scatter(link, g)
    squares = all_gather(link, mean.square().sum()[None])
    norm = squares.sum().sqrt()
    if norm > max_norm:
        mean = mean * (max_norm / norm)
    piece = w.chunk(link.size)[link.rank]
    return all_gather(link, update(piece, mean))
