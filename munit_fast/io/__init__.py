"""File formats: the atomic writer, published checkpoints (.pt), generators as one .safetensors file."""
