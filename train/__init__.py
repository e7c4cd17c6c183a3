"""Training of Tacotron 2 and WaveGlow: data, losses, the loop and its checkpoints."""

from fastglow.threads import let_threads_sleep

let_threads_sleep()  # before torch is loaded
