"""What turns gradients into better weights: optimizers and learning rates by name, and what guards a step."""
