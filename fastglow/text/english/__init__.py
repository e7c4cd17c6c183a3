"""English text as a voice says it: everything written in short is written out."""
