"""What to measure next: samplers, budgets, transfer between shapes, Fast-Run itself."""
