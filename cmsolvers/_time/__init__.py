"""What the solvers of SDEs in time share: fields, what a step may ask for, the one loop."""
