"""Who is in the study, and how much each example counts."""
