"""The teachers: autoregressive image models behind one small interface."""
