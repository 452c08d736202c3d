"""The fast networks, the models over them that translate tensors, and the pretrained models that come along."""
