"""The published training algorithms: one discriminator update, then one generator update, on the same batch.

`hyperparameters` is a mapping with the published configuration keys. Random tensors are drawn with the CPU generator,
whatever the device, in the published order; `noise=` replays recorded ones in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast.io.checkpoints import load_snapshot, save_snapshot

from .networks import AdaINGen, MsImageDis, VAEGen
from .perceptual import Vgg16, perceptual_loss
from .residual import ResidualDis
from .weight_norms import settle_vectors
from .weights_init import weights_init

Hyperparameters = Mapping[str, Any]
Noise = Sequence[Tensor] | None
Losses = dict[str, Any]  # published name -> scalar tensor, or 0.0 for a term that is off


def l1(a: Tensor, b: Tensor) -> Tensor:
    """`mean(|a - b|)`, a scalar with gradient to both sides (eqs. 1–3 of the paper)."""
    return torch.mean(torch.abs(a - b))


def kl(mu: Tensor) -> Tensor:
    """mean(mu²): the KL divergence of N(mu, 1) from N(0, 1), up to its factor, as UNIT is published."""
    return torch.mean(mu**2)


def munit_total(losses: Mapping[str, Any], hp: Hyperparameters) -> Any:
    """MUNIT's objective (eq. 5 and the optional terms): the sum of the losses, weighted by the configuration."""
    return (
        hp["gan_w"] * losses["loss_gen_adv_a"]
        + hp["gan_w"] * losses["loss_gen_adv_b"]
        + hp["recon_x_w"] * losses["loss_gen_recon_x_a"]
        + hp["recon_s_w"] * losses["loss_gen_recon_s_a"]
        + hp["recon_c_w"] * losses["loss_gen_recon_c_a"]
        + hp["recon_x_w"] * losses["loss_gen_recon_x_b"]
        + hp["recon_s_w"] * losses["loss_gen_recon_s_b"]
        + hp["recon_c_w"] * losses["loss_gen_recon_c_b"]
        + hp["recon_x_cyc_w"] * losses["loss_gen_cycrecon_x_a"]
        + hp["recon_x_cyc_w"] * losses["loss_gen_cycrecon_x_b"]
        + hp["vgg_w"] * losses["loss_gen_vgg_a"]
        + hp["vgg_w"] * losses["loss_gen_vgg_b"]
    )


def unit_total(losses: Mapping[str, Any], hp: Hyperparameters) -> Any:
    """UNIT's objective: the sum of the losses, weighted by the configuration."""
    return (
        hp["gan_w"] * losses["loss_gen_adv_a"]
        + hp["gan_w"] * losses["loss_gen_adv_b"]
        + hp["recon_x_w"] * losses["loss_gen_recon_x_a"]
        + hp["recon_kl_w"] * losses["loss_gen_recon_kl_a"]
        + hp["recon_x_w"] * losses["loss_gen_recon_x_b"]
        + hp["recon_kl_w"] * losses["loss_gen_recon_kl_b"]
        + hp["recon_x_cyc_w"] * losses["loss_gen_cyc_x_a"]
        + hp["recon_kl_cyc_w"] * losses["loss_gen_recon_kl_cyc_aba"]
        + hp["recon_x_cyc_w"] * losses["loss_gen_cyc_x_b"]
        + hp["recon_kl_cyc_w"] * losses["loss_gen_recon_kl_cyc_bab"]
        + hp["vgg_w"] * losses["loss_gen_vgg_a"]
        + hp["vgg_w"] * losses["loss_gen_vgg_b"]
    )


def learning_rate(hyperparameters: Hyperparameters, initial: float, iteration: int) -> float:
    """The learning rate of an iteration.

    The schedule advances before the update, so iteration number step_size is the first with a decayed rate.

    Args:
        hyperparameters: lr_policy ("constant" or "step"; default "constant"), and for "step" gamma and step_size.
        initial: the rate that the schedule starts from.
        iteration: its number; the first is 1.

    Raises:
        ValueError: lr_policy is unknown.
    """
    policy = hyperparameters.get("lr_policy", "constant")
    if policy == "constant":
        return initial
    if policy == "step":
        return initial * hyperparameters["gamma"] ** (iteration // hyperparameters["step_size"])
    raise ValueError(f"lr_policy must be one of constant, step; got {policy!r}")


class _Trainer(nn.Module):
    """What MUNIT_Trainer and UNIT_Trainer share: optimizers, schedule, perceptual loss, files."""

    gen_a: nn.Module
    gen_b: nn.Module
    dis_a: MsImageDis
    dis_b: MsImageDis
    discriminator: type[MsImageDis] = MsImageDis
    residual_discriminator: type[MsImageDis] = ResidualDis  # dis.arch: residual

    def _make_discriminator(self, input_dim: int, params: Mapping[str, Any]) -> MsImageDis:
        residual = params.get("arch", "multiscale") == "residual"
        return (self.residual_discriminator if residual else self.discriminator)(input_dim, params)

    def _finish_construction(self, hyperparameters: Hyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self.iterations = 0
        self.skipped_steps = 0
        self.gen_opt = self._adam([self.gen_a, self.gen_b])
        self.dis_opt = self._adam([self.dis_a, self.dis_b])
        self.apply(weights_init(hyperparameters["init"]))
        self.dis_a.apply(weights_init("gaussian"))
        self.dis_b.apply(weights_init("gaussian"))
        settle_vectors(self)
        self.vgg: Vgg16 | None = None
        if hyperparameters.get("vgg_w", 0) > 0:
            folder = Path(hyperparameters.get("vgg_model_path", "."), "models")
            self.vgg = Vgg16.from_file(folder / "vgg16.weight")

    def _adam(self, modules: Iterable[nn.Module]) -> torch.optim.Adam:
        hp = self.hyperparameters
        optimizer = torch.optim.Adam(
            [p for module in modules for p in module.parameters() if p.requires_grad],
            lr=float(hp["lr"]),
            betas=(hp["beta1"], hp["beta2"]),
            weight_decay=float(hp["weight_decay"]),
        )
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def update_learning_rate(self) -> None:
        """Enter the next iteration: call it before the two updates, as the published training script does."""
        self.iterations += 1
        for optimizer in (self.dis_opt, self.gen_opt):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.hyperparameters, group["initial_lr"], self.iterations)

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        """optimizer.step(), unless the gradient's norm is not finite: then the step is skipped and counted.

        A constant image does that: the instance norm of a zero-variance plane multiplies by 1/sqrt(eps) per layer.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # The 2-norm also catches gradients whose squares would overflow inside Adam and freeze their parameters.
        if bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            optimizer.step()
        else:
            self.skipped_steps += 1

    def dis_losses(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> Losses:
        """The discriminators' losses by their published names; `loss_dis_total` is the one that is minimised.

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.
            hyperparameters: the published configuration keys.
            noise: random tensors in the published order; None draws them with torch's CPU generator.

        Returns:
            loss_dis_a, loss_dis_b and loss_dis_total, scalar tensors.
        """
        raise NotImplementedError

    def gen_losses(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> Losses:
        """The generators' losses by their published names; `loss_gen_total` is the one that is minimised.

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.
            hyperparameters: the published configuration keys.
            noise: random tensors in the published order; None draws them with torch's CPU generator.

        Returns:
            Scalar tensors, or 0.0 for a term that is off.
        """
        raise NotImplementedError

    def dis_update(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> None:
        """One discriminator step; the losses become attributes.

        A step whose gradient is not finite is not taken, but counted in `skipped_steps`.

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.
            hyperparameters: the published configuration keys.
            noise: as in `dis_losses`.
        """
        self.dis_opt.zero_grad()
        losses = self.dis_losses(x_a, x_b, hyperparameters, noise)
        vars(self).update(losses)
        losses["loss_dis_total"].backward()
        self._step(self.dis_opt)

    def gen_update(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> None:
        """One generator step; the losses become attributes.

        A step whose gradient is not finite is not taken, but counted in `skipped_steps`.

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.
            hyperparameters: the published configuration keys.
            noise: as in `gen_losses`.
        """
        self.gen_opt.zero_grad()
        losses = self.gen_losses(x_a, x_b, hyperparameters, noise)
        vars(self).update(losses)
        losses["loss_gen_total"].backward()
        self._step(self.gen_opt)

    def compute_vgg_loss(self, vgg: nn.Module, img: Tensor, target: Tensor) -> Tensor:
        """The perceptual distance of two images, a scalar; see `perceptual_loss`.

        Args:
            vgg: a `Vgg16`.
            img: [N, C, H, W] in [-1, 1].
            target: like img.
        """
        return perceptual_loss(vgg, img, target)

    def perceptual_losses(self, x_a: Tensor, x_b: Tensor, x_ab: Tensor, x_ba: Tensor) -> Losses:
        """The perceptual distances of translations to their *sources*: what must survive is the content.

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.
            x_ab: the translations of x_a.
            x_ba: the translations of x_b.

        Returns:
            loss_gen_vgg_a and loss_gen_vgg_b; 0.0 where vgg_w is 0.
        """
        if self.vgg is None:
            return {"loss_gen_vgg_a": 0.0, "loss_gen_vgg_b": 0.0}
        return {
            "loss_gen_vgg_a": self.compute_vgg_loss(self.vgg, x_ba, x_b),
            "loss_gen_vgg_b": self.compute_vgg_loss(self.vgg, x_ab, x_a),
        }

    def _adversarial_losses(self, x_a: Tensor, x_b: Tensor, x_ab: Tensor, x_ba: Tensor, hp: Hyperparameters) -> Losses:
        """The discriminators' losses on real images and on translations."""
        a = self.dis_a.calc_dis_loss(x_ba.detach(), x_a)
        b = self.dis_b.calc_dis_loss(x_ab.detach(), x_b)
        return {"loss_dis_a": a, "loss_dis_b": b, "loss_dis_total": hp["gan_w"] * a + hp["gan_w"] * b}

    def resume(self, checkpoint_dir: str | Path, hyperparameters: Hyperparameters) -> int:
        """Load the newest gen_*.pt, dis_*.pt and optimizer.pt of a folder.

        Args:
            checkpoint_dir: the folder.
            hyperparameters: the published configuration keys, for the iterations to come.

        Returns:
            The completed iterations.

        Raises:
            FileNotFoundError: a file is missing.
            RuntimeError: from load_state_dict, when shapes differ.
        """
        iterations, optimizers = load_snapshot(checkpoint_dir, self.generators, self.discriminators)
        self.load_optimizers(optimizers)
        self.hyperparameters = hyperparameters
        self.iterations = iterations
        return iterations

    def load_optimizers(self, states: Mapping[str, Any]) -> None:
        """Load {"gen", "dis"}, the content of an optimizer.pt, with the learning rates it holds."""
        for optimizer, state in ((self.dis_opt, states["dis"]), (self.gen_opt, states["gen"])):
            optimizer.load_state_dict(state)
            for group in optimizer.param_groups:  # absent from published files of a constant learning rate
                group.setdefault("initial_lr", group["lr"])

    def save(self, snapshot_dir: str | Path, iterations: int) -> None:
        """Write gen_########.pt, dis_########.pt (named iterations + 1) and optimizer.pt, each whole or not at all.

        Args:
            snapshot_dir: the folder.
            iterations: the index of the last iteration, from 0.
        """
        optimizers = {"gen": self.gen_opt, "dis": self.dis_opt}
        save_snapshot(snapshot_dir, iterations + 1, self.generators, self.discriminators, optimizers)

    @property
    def generators(self) -> dict[str, nn.Module]:
        """The generators of the two domains, {"a": network, "b": network}."""
        return {"a": self.gen_a, "b": self.gen_b}

    @property
    def discriminators(self) -> dict[str, nn.Module]:
        """The discriminators of the two domains, {"a": network, "b": network}."""
        return {"a": self.dis_a, "b": self.dis_b}


class MUNIT_Trainer(_Trainer):
    """MUNIT's training algorithm (section 3.2, eqs. 1–5 of the paper).

    Args:
        hyperparameters: the published configuration keys.
    """

    gen_a: AdaINGen
    gen_b: AdaINGen
    generator: type[AdaINGen] = AdaINGen

    def __init__(self, hyperparameters: Hyperparameters) -> None:
        super().__init__()
        hp = hyperparameters
        self.gen_a = self.generator(hp["input_dim_a"], hp["gen"])
        self.gen_b = self.generator(hp["input_dim_b"], hp["gen"])
        self.dis_a = self._make_discriminator(hp["input_dim_a"], hp["dis"])
        self.dis_b = self._make_discriminator(hp["input_dim_b"], hp["dis"])
        self.style_dim: int = hp["gen"]["style_dim"]
        # The styles that `forward` and `sample` show, drawn once so that pictures of a run can be compared.
        display_size = int(hp["display_size"])
        self.s_a = torch.randn(display_size, self.style_dim, 1, 1)
        self.s_b = torch.randn(display_size, self.style_dim, 1, 1)
        self._finish_construction(hp)

    def _styles(self, x_a: Tensor, x_b: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        if noise is None:
            noise = [torch.randn(x.shape[0], self.style_dim, 1, 1) for x in (x_a, x_b)]
        s_a, s_b = noise
        return s_a.to(x_a), s_b.to(x_b)

    def dis_losses(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> Losses:
        """The discriminators' losses (eq. 4).

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.
            hyperparameters: gan_w.
            noise: [s_a, s_b], each [N, style_dim, 1, 1]; None draws them with torch's CPU generator.

        Returns:
            loss_dis_a, loss_dis_b and loss_dis_total, scalar tensors.
        """
        s_a, s_b = self._styles(x_a, x_b, noise)
        with torch.no_grad():
            c_a, _ = self.gen_a.encode(x_a)
            c_b, _ = self.gen_b.encode(x_b)
            x_ba = self.gen_a.decode(c_b, s_a)
            x_ab = self.gen_b.decode(c_a, s_b)
        return self._adversarial_losses(x_a, x_b, x_ab, x_ba, hyperparameters)

    def gen_losses(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> Losses:
        """The generators' losses (eqs. 1–5).

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.
            hyperparameters: gan_w, recon_x_w, recon_s_w, recon_c_w, recon_x_cyc_w, vgg_w.
            noise: [s_a, s_b], each [N, style_dim, 1, 1]; None draws them with torch's CPU generator.

        Returns:
            Scalar tensors by their published names, or 0.0 for a term that is off.
        """
        hp = hyperparameters
        s_a, s_b = self._styles(x_a, x_b, noise)
        c_a, s_a_prime = self.gen_a.encode(x_a)
        c_b, s_b_prime = self.gen_b.encode(x_b)
        x_a_recon = self.gen_a.decode(c_a, s_a_prime)
        x_b_recon = self.gen_b.decode(c_b, s_b_prime)
        x_ba = self.gen_a.decode(c_b, s_a)
        x_ab = self.gen_b.decode(c_a, s_b)
        c_b_recon, s_a_recon = self.gen_a.encode(x_ba)
        c_a_recon, s_b_recon = self.gen_b.encode(x_ab)

        losses: Losses = {
            "loss_gen_recon_x_a": l1(x_a_recon, x_a),
            "loss_gen_recon_x_b": l1(x_b_recon, x_b),
            "loss_gen_recon_s_a": l1(s_a_recon, s_a),
            "loss_gen_recon_s_b": l1(s_b_recon, s_b),
            "loss_gen_recon_c_a": l1(c_a_recon, c_a),
            "loss_gen_recon_c_b": l1(c_b_recon, c_b),
            "loss_gen_cycrecon_x_a": 0.0,
            "loss_gen_cycrecon_x_b": 0.0,
        }
        if hp["recon_x_cyc_w"] > 0:
            losses["loss_gen_cycrecon_x_a"] = l1(self.gen_a.decode(c_a_recon, s_a_prime), x_a)
            losses["loss_gen_cycrecon_x_b"] = l1(self.gen_b.decode(c_b_recon, s_b_prime), x_b)
        losses["loss_gen_adv_a"] = self.dis_a.calc_gen_loss(x_ba)
        losses["loss_gen_adv_b"] = self.dis_b.calc_gen_loss(x_ab)
        losses |= self.perceptual_losses(x_a, x_b, x_ab, x_ba)
        return losses | {"loss_gen_total": munit_total(losses, hp)}

    @torch.no_grad()
    def forward(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
        """The translations of images with the display styles, in evaluation mode and without a graph.

        Args:
            x_a: images of domain A, [display_size, C, H, W] in [-1, 1].
            x_b: images of domain B, likewise.

        Returns:
            x_ab and x_ba.
        """
        with _evaluating(self):
            c_a, _ = self.gen_a.encode(x_a)
            c_b, _ = self.gen_b.encode(x_b)
            return self.gen_b.decode(c_a, self.s_b.to(x_a)), self.gen_a.decode(c_b, self.s_a.to(x_b))

    @torch.no_grad()
    def sample(self, x_a: Tensor, x_b: Tensor, noise: Noise = None) -> tuple[Tensor, ...]:
        """The pictures that training shows, image by image, in evaluation mode and without a graph.

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1]; N must not exceed display_size.
            x_b: images of domain B, likewise.
            noise: the new styles [s_a2, s_b2], each [N, style_dim, 1, 1]; None draws them with torch's CPU generator.

        Returns:
            x_a, its reconstruction, its translation with the display styles, the one with new styles; the same for x_b.
        """
        s_a2, s_b2 = self._styles(x_a, x_b, noise)
        with _evaluating(self):
            columns = [
                self._sample_one(x_a[i : i + 1], x_b[i : i + 1], i, s_a2[i : i + 1], s_b2[i : i + 1])
                for i in range(min(x_a.shape[0], x_b.shape[0]))
            ]
        recon_a, ab1, ab2, recon_b, ba1, ba2 = (torch.cat(column) for column in zip(*columns))
        return x_a, recon_a, ab1, ab2, x_b, recon_b, ba1, ba2

    def _sample_one(self, x_a: Tensor, x_b: Tensor, i: int, s_a2: Tensor, s_b2: Tensor) -> tuple[Tensor, ...]:
        c_a, s_a_prime = self.gen_a.encode(x_a)
        c_b, s_b_prime = self.gen_b.encode(x_b)
        s_a1, s_b1 = self.s_a[i : i + 1].to(x_a), self.s_b[i : i + 1].to(x_b)
        return (
            self.gen_a.decode(c_a, s_a_prime),
            self.gen_b.decode(c_a, s_b1),
            self.gen_b.decode(c_a, s_b2),
            self.gen_b.decode(c_b, s_b_prime),
            self.gen_a.decode(c_b, s_a1),
            self.gen_a.decode(c_b, s_a2),
        )


class UNIT_Trainer(_Trainer):
    """UNIT's training algorithm as the MUNIT code base publishes it: two independent generators, no shared weights.

    Args:
        hyperparameters: the published configuration keys.
    """

    gen_a: VAEGen
    gen_b: VAEGen
    generator: type[VAEGen] = VAEGen

    def __init__(self, hyperparameters: Hyperparameters) -> None:
        super().__init__()
        hp = hyperparameters
        self.gen_a = self.generator(hp["input_dim_a"], hp["gen"])
        self.gen_b = self.generator(hp["input_dim_b"], hp["gen"])
        self.dis_a = self._make_discriminator(hp["input_dim_a"], hp["dis"])
        self.dis_b = self._make_discriminator(hp["input_dim_b"], hp["dis"])
        self._finish_construction(hp)

    def dis_losses(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> Losses:
        """The discriminators' losses.

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.
            hyperparameters: gan_w.
            noise: [n_a, n_b], each of the code's shape; None draws them.

        Returns:
            loss_dis_a, loss_dis_b and loss_dis_total, scalar tensors.

        Raises:
            ValueError: noise does not hold two tensors.
        """
        draws = _replay(noise, 2)
        with torch.no_grad():
            h_a, n_a = self.gen_a.encode(x_a, next(draws))
            h_b, n_b = self.gen_b.encode(x_b, next(draws))
            x_ba = self.gen_a.decode(h_b + n_b)
            x_ab = self.gen_b.decode(h_a + n_a)
        return self._adversarial_losses(x_a, x_b, x_ab, x_ba, hyperparameters)

    def gen_losses(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> Losses:
        """The generators' losses.

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.
            hyperparameters: gan_w, recon_x_w, recon_kl_w, recon_x_cyc_w, recon_kl_cyc_w, vgg_w.
            noise: [n_a, n_b, n_b_recon, n_a_recon], each of the code's shape; None draws them.

        Returns:
            Scalar tensors by their published names, or 0.0 for a term that is off.

        Raises:
            ValueError: noise does not hold four tensors.
        """
        hp = hyperparameters
        draws = _replay(noise, 4)
        h_a, n_a = self.gen_a.encode(x_a, next(draws))
        h_b, n_b = self.gen_b.encode(x_b, next(draws))
        x_a_recon = self.gen_a.decode(h_a + n_a)
        x_b_recon = self.gen_b.decode(h_b + n_b)
        x_ba = self.gen_a.decode(h_b + n_b)
        x_ab = self.gen_b.decode(h_a + n_a)
        h_b_recon, n_b_recon = self.gen_a.encode(x_ba, next(draws))
        h_a_recon, n_a_recon = self.gen_b.encode(x_ab, next(draws))

        losses: Losses = {
            "loss_gen_recon_x_a": l1(x_a_recon, x_a),
            "loss_gen_recon_x_b": l1(x_b_recon, x_b),
            "loss_gen_recon_kl_a": kl(h_a),
            "loss_gen_recon_kl_b": kl(h_b),
            "loss_gen_cyc_x_a": 0.0,
            "loss_gen_cyc_x_b": 0.0,
        }
        if hp["recon_x_cyc_w"] > 0:
            losses["loss_gen_cyc_x_a"] = l1(self.gen_a.decode(h_a_recon + n_a_recon), x_a)
            losses["loss_gen_cyc_x_b"] = l1(self.gen_b.decode(h_b_recon + n_b_recon), x_b)
        losses["loss_gen_recon_kl_cyc_aba"] = kl(h_a_recon)
        losses["loss_gen_recon_kl_cyc_bab"] = kl(h_b_recon)
        losses["loss_gen_adv_a"] = self.dis_a.calc_gen_loss(x_ba)
        losses["loss_gen_adv_b"] = self.dis_b.calc_gen_loss(x_ab)
        losses |= self.perceptual_losses(x_a, x_b, x_ab, x_ba)
        return losses | {"loss_gen_total": unit_total(losses, hp)}

    @torch.no_grad()
    def forward(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
        """The translations (x_ab, x_ba) of images [N, C, H, W], from the means of the codes, without a graph."""
        with _evaluating(self):
            h_a, h_b = self.gen_a.enc(x_a), self.gen_b.enc(x_b)
            return self.gen_b.decode(h_a), self.gen_a.decode(h_b)

    @torch.no_grad()
    def sample(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, ...]:
        """The pictures that training shows, image by image, from the means of the codes, without a graph.

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.

        Returns:
            x_a, its reconstruction, its translation; the same for x_b.
        """
        with _evaluating(self):
            columns = [self._sample_one(x_a[i : i + 1], x_b[i : i + 1]) for i in range(min(x_a.shape[0], x_b.shape[0]))]
        recon_a, ab, recon_b, ba = (torch.cat(column) for column in zip(*columns))
        return x_a, recon_a, ab, x_b, recon_b, ba

    def _sample_one(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, ...]:
        h_a, h_b = self.gen_a.enc(x_a), self.gen_b.enc(x_b)
        return self.gen_a.decode(h_a), self.gen_b.decode(h_a), self.gen_b.decode(h_b), self.gen_a.decode(h_b)


def _replay(noise: Noise, count: int) -> Iterator[Tensor | None]:
    if noise is None:
        return iter([None] * count)
    if len(noise) != count:
        raise ValueError(f"noise must hold {count} tensors in the published order; got {len(noise)}")
    return iter(noise)


class _evaluating:
    """Evaluation mode inside the block, the previous mode after it."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.was_training = module, module.training

    def __enter__(self) -> None:
        self.module.eval()

    def __exit__(self, *exc: object) -> None:
        self.module.train(self.was_training)
