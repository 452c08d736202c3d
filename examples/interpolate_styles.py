"""Walk from style to style: a row for each drawing, a column for each step.

python examples/interpolate_styles.py [--styles 3] [--steps 4] [--output styles.png]

The same from the command line: munit-fast translate --num_style 3 --interpolate 4 --synchronized --grid styles.png
"""

import argparse
from pathlib import Path

import torch

import munit_fast as mf
from munit_fast.data import decode_image, make_grid, resize_short_side, save_image, to_model_range
from munit_fast.translate import style_path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--styles", type=int, default=3)
parser.add_argument("--steps", type=int, default=4, help="from one style to the next")
parser.add_argument("--seed", type=int, default=3)
parser.add_argument("--output", type=Path, default=Path("styles.png"))
args = parser.parse_args()

sketches = Path(__file__).parents[1] / "docs" / "pretrained" / "sketches"
model = mf.MUNIT.from_pretrained("openmoji-lines2color")
codes = torch.randn(args.styles, 8, generator=torch.Generator().manual_seed(args.seed))  # [styles, style_dim]
path = style_path(codes, args.steps)  # [(styles - 1)·steps + 1, style_dim]

rows = []
for name in ("quickdraw-house", "quickdraw-fish", "open-peeps-head"):
    x = to_model_range(resize_short_side(decode_image(sketches / f"{name}.png", 3), 64))
    rows.append(torch.cat([x[None], model.translate(x[None], style=path)[0]]))
save_image(make_grid(rows), args.output)
print(f"wrote {args.output}: {len(rows)} drawings, {len(path)} styles each")
