"""The exponential moving average of the generators: smoother than any one iteration's weights, and better to translate
with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_WARM_UP = 0.05  # of the images seen: the longest half-life during the warm-up


def images_seen(iterations: int, hyperparameters: Mapping[str, Any], processes: int = 1) -> int:
    """Images of each domain after some iterations of a run: for files that do not say.

    Args:
        iterations: completed ones.
        hyperparameters: the published configuration keys; batch_size and accumulation count.
        processes: of the run.
    """
    per_process = int(hyperparameters.get("batch_size", 1)) * int(hyperparameters.get("accumulation", 1))
    return iterations * per_process * processes


class GeneratorAverage:
    """Exponential moving average of networks' parameters (Yazıcı et al., ICLR 2019), where the parameters are.

    Args:
        half_life: after this many images a weight's share has halved, so the average means the same at any batch size.
            During the warm-up it is shorter, 5 % of the images seen (Karras et al., "Training Generative Adversarial
            Networks with Limited Data", NeurIPS 2020).

    Attributes:
        images: of each domain that the average has seen.
        tensors: the averaged parameters, in their order, device and dtype; empty before the first update.

    Raises:
        ValueError: half_life is not positive.
    """

    def __init__(self, half_life: float) -> None:
        if not half_life > 0:
            raise ValueError(f"half_life must be a positive number of images; got {half_life}")
        self.half_life = half_life
        self.images = 0
        self.tensors: list[Tensor] = []

    def weight(self, images: int) -> float:
        """The share that the current parameters get in an update after `images` more images."""
        half_life = min(self.half_life, _WARM_UP * (self.images + images))
        return float(1 - 0.5 ** (images / half_life))

    @torch.no_grad()
    def update(self, networks: Mapping[str, nn.Module], images: int) -> None:
        """Update the average with the parameters after an iteration on `images` images of each domain. In place."""
        parameters = [p for _, _, p in _named(networks)]
        if not self.tensors:
            self.tensors = [p.detach().clone() for p in parameters]
        else:
            torch._foreach_lerp_(self.tensors, parameters, self.weight(images))
        self.images += images

    def apply(self, fn: Any) -> None:
        """What nn.Module._apply does to parameters."""
        self.tensors = [fn(t) for t in self.tensors]

    def follow(self, networks: Mapping[str, nn.Module]) -> None:
        """Keep the average in the layout of the parameters, which changed in place."""
        for i, (_, _, p) in enumerate(_named(networks) if self.tensors else ()):
            self.tensors[i] = torch.empty_like(p, requires_grad=False).copy_(self.tensors[i])

    def states(self, networks: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
        """A state_dict for each network with the averaged parameters; {} before the first update."""
        states = {key: dict(network.state_dict()) for key, network in networks.items()} if self.tensors else {}
        if states:
            for (key, name, _), tensor in zip(_named(networks), self.tensors):
                states[key][name] = tensor
        return states

    def load(self, networks: Mapping[str, nn.Module], states: Mapping[str, Mapping[str, Tensor]], images: int) -> None:
        """Load what `states` returned.

        Args:
            networks: the generators {"a", "b"}, on whose devices the average is kept.
            states: their averaged state_dicts.
            images: how many images of each domain the average has seen.
        """
        self.tensors = [
            torch.empty_like(p, requires_grad=False).copy_(states[key][name]) for key, name, p in _named(networks)
        ]
        self.images = images


def _named(networks: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, Tensor]]:
    for key, network in networks.items():
        for name, parameter in network.named_parameters():
            yield key, name, parameter
