"""What one training step is: micro-batches, mean gradient, decision, optimiser, averages."""
