"""What training a model on a mesh would cost: `run.py info --mesh 8x4 --model llama_65b --link infiniband-hdr`.

D x K: D groups share the model out (FSDP), K processes of each cut its matrices (tensor parallelism). The formulas are
those of lessons/mesh.py, which tests hold to the bytes that small runs send.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lessons.mesh import LINKS, describe_mesh, describe_ppo  # noqa: E402
from minillama.config import preset  # noqa: E402
from minillama.train.tensor_parallel import require_cuttable  # noqa: E402


def main(words=None):
    parser = argparse.ArgumentParser(prog="run.py info", description="memory, traffic and time of training on a mesh "
                                     "of processes")
    parser.add_argument("--mesh", required=True, metavar="DxK", help="groups that share the model out x processes that "
                        "cut its matrices")
    parser.add_argument("--model", required=True, metavar="PRESET", help="a shape, such as llama_65b")
    parser.add_argument("--link", choices=LINKS, default="nvlink3", help="between processes (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1, help="sequences of a group in a step (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=2048, help="of a sequence (default: %(default)s)")
    parser.add_argument("--answer-tokens", type=int, default=0, metavar="N", help="say what an iteration of `ppo "
                        "--shard` costs, too, whose longest answer has N tokens")
    arguments = parser.parse_args(words)
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", arguments.mesh)
    if not found or min(arguments.rows, arguments.tokens) < 1:
        parser.error(f"--mesh is {arguments.mesh!r}, of {arguments.rows} x {arguments.tokens} tokens: give two "
                     "numbers such as 8x4, and at least one token")
    try:
        shape = preset(arguments.model)
        if found[2] != "1":
            require_cuttable(shape, int(found[2]), f"the second number of --mesh {arguments.mesh}:")
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(describe_mesh(shape, int(found[1]), int(found[2]), arguments.rows, arguments.tokens,
                                  arguments.link)))
    if arguments.answer_tokens > 0:
        print("\n".join(describe_ppo(shape, int(found[1]) * int(found[2]), arguments.answer_tokens)))


if __name__ == "__main__":
    main()
