"""Training of Tacotron 2 and WaveGlow: data, losses, the loop and its checkpoints."""

from fastglow.threads import wait_asleep

wait_asleep()  # before torch is loaded
