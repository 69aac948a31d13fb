"""Training: one generic step, one loop, and what each method puts into them."""
