"""Training: TRL's SFT classes with an objective, a selection and a teacher; the two-stage pipeline; run folders."""
