"""A training loop of your own around MUNIT's networks, under autocast.

python examples/own_loop.py [--steps 200] [--size 64] [--dim 16]

It learns one direction, A to B, from random stripes (A) and their coloured negatives (B): image and style
reconstruction and an adversarial loss. `mf.MUNIT_Trainer` has the complete, published update.
"""

import argparse

import torch

from munit_fast import functional as F
from munit_fast import make_config, networks

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--dim", type=int, default=16, help="channels of the first layer")
args = parser.parse_args()

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(0)
hp = make_config({"gen": {"dim": args.dim}, "dis": {"dim": args.dim, "num_scales": 2}}).hyperparameters()
gen_a, gen_b = (networks.AdaINGen(3, hp["gen"]).to(device) for _ in range(2))
dis_b = networks.MsImageDis(3, hp["dis"]).to(device)
gen_opt = torch.optim.Adam([*gen_a.parameters(), *gen_b.parameters()], lr=2e-4, betas=(0.5, 0.999))
dis_opt = torch.optim.Adam(dis_b.parameters(), lr=2e-4, betas=(0.5, 0.999))


def stripes(n: int) -> torch.Tensor:
    """[n, 3, size, size] in [-1, 1], in the memory layout that the networks are fastest in."""
    wave = torch.sin(torch.linspace(0, 6.28, args.size) * torch.randint(2, 8, (n, 1)) + 6.28 * torch.rand(n, 1))
    x = wave[:, None, None, :].expand(n, 3, args.size, args.size)
    return x.to(device).contiguous(memory_format=torch.channels_last)


for step in range(args.steps):
    x_a, x_b = stripes(4), -stripes(4) * torch.rand(4, 3, 1, 1, device=device)
    s_b = torch.randn(4, hp["gen"]["style_dim"], 1, 1, device=device)
    # Convolutions run in bfloat16; statistics and losses stay in float32.
    with torch.autocast(device.type, torch.bfloat16):
        c_a, s_a = gen_a.encode(x_a)
        c_b, s_b_real = gen_b.encode(x_b)
        x_ab = gen_b.decode(c_a, s_b)
        dis_loss = F.lsgan_loss(dis_b(x_ab.detach()), 0.0) + F.lsgan_loss(dis_b(x_b), 1.0)
    dis_opt.zero_grad(set_to_none=True)
    dis_loss.backward()
    dis_opt.step()

    with torch.autocast(device.type, torch.bfloat16):
        pairs = [(gen_a.decode(c_a, s_a), x_a), (gen_b.decode(c_b, s_b_real), x_b), (gen_b.encode(x_ab)[1], s_b)]
        image_a, image_b, style_b = F.l1_losses(pairs)
        gen_loss = 10 * (image_a + image_b) + style_b + F.lsgan_loss(dis_b(x_ab), 1.0)
    gen_opt.zero_grad(set_to_none=True)
    gen_loss.backward()
    gen_opt.step()
    if step % 20 == 0 or step == args.steps - 1:
        print(f"{step:5d}  discriminator {dis_loss.item():.3f}  generators {gen_loss.item():.3f}")
