"""Has a discriminator learned its training pictures by heart? Its verdicts on them and on held-out ones, by scale.

    python docs/pretrained/memorisation.py --config CONFIG --checkpoint gen_########.pt [--json FILE]

Real is 1, translated is 0 (LSGAN). Where training pictures score higher than held-out ones, what the generator is
told is no longer how colours look but what these pictures look like. Reads dis_########.pt beside the checkpoint.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

import munit_fast as mf
from munit_fast.data import decode_image, list_images, to_model_range
from munit_fast.evaluate.overfitting import verdicts as of_discriminator
from munit_fast.io.atomic import atomic_write_bytes


def verdicts(config: Path, checkpoint: Path) -> dict[str, list[float]]:
    """Mean output of B's discriminator at each scale, the finest first; as many training as held-out pictures."""
    if not checkpoint.name.startswith("gen_") or not checkpoint.with_name(f"dis_{checkpoint.name[4:]}").exists():
        raise SystemExit(f"{checkpoint}: give a gen_########.pt file that has its dis_########.pt beside it")
    cfg = mf.load_config(config)
    model = mf.MUNIT(cfg).load(checkpoint, average=False).eval()
    discriminator = mf.MUNIT_Trainer(cfg.hyperparameters()).dis_b.eval()
    state = torch.load(checkpoint.with_name(f"dis_{checkpoint.name[4:]}"), weights_only=True)
    discriminator.load_state_dict(state["b"])
    folders = {name: list_images(Path(str(cfg.data_root)) / name) for name in ("trainA", "trainB", "testA", "testB")}
    count = min(len(paths) for paths in folders.values())

    def pictures(name: str) -> Tensor:
        paths = folders[name]
        chosen = [paths[i * len(paths) // count] for i in range(count)]
        return torch.stack([to_model_range(decode_image(path, 3)) for path in chosen])

    def translated(name: str) -> Tensor:
        return torch.cat([model.translate(x, direction="a2b", num_styles=1)[:, 0] for x in pictures(name).split(32)])

    torch.manual_seed(0)
    seen = {
        "training pictures": pictures("trainB"),
        "held-out pictures": pictures("testB"),
        "translations of training drawings": translated("trainA"),
        "translations of held-out drawings": translated("testA"),
    }
    return {name: [round(mean, 3) for mean in of_discriminator(discriminator, x)] for name, x in seen.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = verdicts(options.config, options.checkpoint)
    for name, values in found.items():
        print(f"{name:34}", *values)
    if options.json:
        atomic_write_bytes(options.json, (json.dumps(found, indent=1) + "\n").encode())
