"""Translate a drawing with the bundled pretrained model.

python examples/translate.py [drawing.png] [--output translated.png]
"""

import argparse
from pathlib import Path

import torch

import munit_fast as mf
from munit_fast.data import decode_image, make_grid, resize_short_side, save_image, to_model_range

parser = argparse.ArgumentParser(description=__doc__)
sketches = Path(__file__).parents[1] / "docs" / "pretrained" / "sketches"
parser.add_argument("drawing", nargs="?", type=Path, default=sketches / "quickdraw-house.png")
parser.add_argument("--output", type=Path, default=Path("translated.png"))
args = parser.parse_args()

# Transparent areas become white, and the short side the 64 pixels that the model was trained on.
x = to_model_range(resize_short_side(decode_image(args.drawing, 3), 64))[None]  # [1, 3, H, W] in [-1, 1]

# The three lines:
model = mf.MUNIT.from_pretrained("openmoji-lines2color")
torch.manual_seed(0)
y = model.translate(x, direction="a2b", num_styles=6)  # [1, 6, 3, H, W]

save_image(make_grid([torch.cat([x, y[0]])]), args.output)
print(f"wrote {args.output}: the drawing and {y.shape[1]} colourings")
