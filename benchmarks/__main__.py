"""``python -m benchmarks``: name the commands and run a short one."""

from benchmarks import head

print("python -m benchmarks.head   the output head: time, memory and gradient error, ours and every peer's")
print("python -m benchmarks.step   whole training steps on SmolLM2-135M, TRL's and ours")
print("python -m benchmarks.uncertainty   Monte-Carlo dropout scoring beside bare forward passes")
print("Here: python -m benchmarks.head --quick\n")
head.main(["--quick"])
