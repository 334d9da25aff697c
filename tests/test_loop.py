"""The loop without a Trainer runs, learns, and imports no Hugging Face package."""

import subprocess
import sys
from pathlib import Path

LOOP = Path(__file__).resolve().parents[1] / "examples" / "loop.py"
CODE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("loop", sys.argv[1])
loop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loop)
found = loop.main(problems=96)
assert all(found[arm] < found["untrained"] - 0.5 for arm in ("mle", "masked_mle", "masked_mle_distill")), found
assert found["masked_mle_distill"] < found["masked_mle"], found
heavy = {"transformers", "trl", "peft", "accelerate", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""


def test_it_learns_without_hugging_face():
    done = subprocess.run([sys.executable, "-c", CODE, str(LOOP)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nats per token") == 4
