"""File formats: files written whole or not at all, published checkpoints, generators as one safetensors file."""
