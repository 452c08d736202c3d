"""Train on pictures in ROOT/trainA and ROOT/trainB, with some in ROOT/testA and ROOT/testB for display.

python examples/train_folder.py ROOT [--iterations 10000] [--size 128] [--dim 64] [--output runs]

This is `munit-fast train --auto_resume` from Python. Run the same command again to continue an interrupted run.
"""

import argparse
from pathlib import Path

import yaml

from munit_fast import make_config
from munit_fast.train import TrainOptions, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--iterations", type=int, default=10000)
    parser.add_argument("--size", type=int, default=128, help="side of the training crops in pixels")
    parser.add_argument("--dim", type=int, default=64, help="channels of the first layer")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    args = parser.parse_args()

    # The keys of the published YAML files; what is left out has the published edges2handbags value.
    values = {
        "data_root": str(args.root.resolve()),
        "max_iter": args.iterations,
        "new_size": args.size,
        "crop_image_height": args.size,
        "crop_image_width": args.size,
        "gen": {"dim": args.dim},
        "dis": {"dim": args.dim},
        "display_size": 4,
        "num_workers": 2,
    }
    options = TrainOptions("example", output_path=args.output, auto_resume=True)
    result = train(make_config(values), options, config_text=yaml.safe_dump(values))
    print(
        f"{result.iterations} iterations in {result.seconds:.0f} s; checkpoints and index.html in {result.folder.root}"
    )


if __name__ == "__main__":  # the processes that load images import this file
    main()
