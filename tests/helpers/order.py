"""The order in which several workers take the files of tests: the longest first, so that none is left for the end."""

LONGEST = (
    "tests/test_gpu_tool.py",
    "tests/sweep/test_sweep_command.py",
    "tests/training/test_kill.py",
    "tests/training/test_invariance.py",
    "tests/training/test_user_commands.py",
    "tests/training/test_trl_parity.py",
    "tests/training/test_teacher_cache.py",
    "tests/training/test_devices.py",
    "tests/evaluation/test_evaluate_command.py",
    "tests/cli/test_terminal.py",
    "tests/cli/test_fuzz_data.py",
    "tests/training/test_family.py",
    "tests/training/test_resume.py",
    "tests/training/test_no_lost_work.py",
    "tests/evaluation/test_loaded_models.py",
    "tests/scoring/test_score_command.py",
    "tests/test_recipes.py",
    "tests/test_packaging.py",
    "tests/test_docs.py",
    "tests/test_quickstart.py",
    "tests/training/test_ranks.py",
)
"""Files of more than ten seconds (``pytest --durations=0``); the others keep their order."""


def place(path: str) -> int:
    """The place of a file among ``LONGEST``; the others come after these."""
    return LONGEST.index(path) if path in LONGEST else len(LONGEST)
