"""Exercise 38: what ZeRO's stages hold and send, a reduce-scatter of any length, a step of stage 2 with clipping.

`link` is that of the lesson: link.rank and link.size; link.send(tensor, to); link.receive(like, source), which waits
for a tensor of the shape and dtype of `like`. Send only to the right neighbour, and receive only from the left one.
The solution is in lessons/solutions/.
"""


def held_and_sent(stage, N, P):
    """(bytes that a process holds between steps, bytes that it sends in a step), all in fp32: two whole numbers.

    stage: 0 (data parallel), 1, 2 or 3; N: weights, a multiple of P; P: processes. Held are weights, gradients and
    Adam's two means.
    """
    raise NotImplementedError("your code here")


def mean_scatter(link, g):
    """Piece number link.rank of the mean over all processes of g, which is a vector of any length: a tensor.

    Fill g up with zeros to the next multiple of P = link.size; then all P pieces have the same length.
    """
    raise NotImplementedError("your code here")


def clipped_step(link, w, g, max_norm, update, mean_scatter, all_gather):
    """All weights after a step of stage 2: a tensor like w.

    w: all weights, a vector whose length is a multiple of P; g: the gradient of this process's rows.
    update(piece, gradient): what this process's Adam makes of its piece of the weights. mean_scatter(link, g) and
    all_gather(link, chunk) are there to be called. Where the norm of the *whole* mean gradient is above max_norm, the
    gradient is multiplied by max_norm / norm before the update; else it stays as it is. Send as few numbers as you can.
    """
    raise NotImplementedError("your code here")
