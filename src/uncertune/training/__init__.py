"""Training: TRL's SFT classes with an objective, a selection and a teacher, and the pipeline of two stages."""
