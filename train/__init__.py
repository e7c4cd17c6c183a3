"""Training of Tacotron 2 and WaveGlow: data, losses, the loop and its checkpoints."""
