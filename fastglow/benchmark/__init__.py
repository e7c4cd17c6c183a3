"""What `fastglow bench` measures: a voice on the user's machine, beside plain PyTorch operations."""
