"""Plain PyTorch definitions of every operation: any dtype, any device, differentiable."""
