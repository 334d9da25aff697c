"""Teachers, which give p_ref: a second adapter on the student's base, or another model."""
