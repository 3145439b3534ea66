"""What runs solvers: the fixed-step loop, the loop over times, steps per sample, the catalogue."""
