"""The published trainers over the fast networks: same surface, files and mathematics as `munit_fast.reference`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from munit_fast import reference
from munit_fast.io.checkpoints import checkpoint_name, load_average, save_atomically
from munit_fast.models.networks import AdaINGen, Fused, MsImageDis, VAEGen, shared_weights
from munit_fast.reference.trainers import Hyperparameters, Noise
from munit_fast.train import cuda_graph
from munit_fast.train import losses as objectives
from munit_fast.train.cuda_graph import CaptureError, StepGraph
from munit_fast.train.ema import GeneratorAverage, images_seen
from munit_fast.train.losses import Codes, frozen
from munit_fast.train.nonfinite import finite_statistics
from munit_fast.train.stepping import Stepping

__all__ = ["MUNIT_Trainer", "UNIT_Trainer"]


_MOST_GRAPHS = 4  # of one trainer; they share their memory

TrainingNoise = tuple[Sequence[Tensor], Sequence[Tensor]]


class _KeptCodes(NamedTuple):
    """Codes with their graph, and what they were made of. The images are held, so that no other can pass for them."""

    x_a: Tensor
    x_b: Tensor
    versions: list[Any]
    codes: Codes


class _Fast(Stepping):
    """What the two fast trainers share: an iteration, the losses of its two updates, files."""

    gen_a: Any
    gen_b: Any
    dis_a: Any
    dis_b: Any
    discriminator = MsImageDis
    loss_dis_total: Tensor
    loss_gen_total: Tensor

    def _set_up(self, impl: str, amp: str, checkpointing: bool) -> None:
        self._set_up_steps(impl, amp)
        self._codes: _KeptCodes | None = None
        self._graphs: dict[Any, StepGraph] = {}
        self._no_graph: str | None = None
        half_life = float(self.hyperparameters.get("ema_half_life", 0))
        self.average = GeneratorAverage(half_life) if half_life else None
        for module in (self.gen_a, self.gen_b, self.dis_a, self.dis_b):
            assert isinstance(module, Fused)
            module.set_impl(impl)
            module.set_checkpointing(checkpointing)

    @property
    def generators(self) -> dict[str, nn.Module]:
        return {"a": self.gen_a, "b": self.gen_b}

    # ---- a whole iteration ----

    def update(
        self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: TrainingNoise | None = None
    ) -> None:
        """One iteration: update_learning_rate, dis_update, gen_update, update_average; on a GPU, in one CUDA graph.

        x_a, x_b [N, C, H, W] in [-1, 1], on any device; noise (default: new) as `draw_noise` gives it. The graph comes
        with the fourth iteration. The losses are then its tensors: the next iteration overwrites them. What keeps a GPU
        from capturing is logged once, and the updates run one by one.
        """
        device = self.device
        of_dis, of_gen = noise = noise or self.draw_noise(x_a, x_b)
        reason = self._no_graph or cuda_graph.why_not(self, device)
        if reason is None:
            try:
                self._update_in_graph(x_a, x_b, hyperparameters, device, noise)
                return self.update_average(x_a.shape[0])
            except CaptureError as error:
                self._no_graph = reason = f"the capture failed: {error}"
                self._forget_graphs()
                self.iterations -= 1
        if device.type == "cuda":
            cuda_graph.warn_once(f"training without a CUDA graph: {reason}")
        self.update_learning_rate()
        x_a, x_b = x_a.to(device, non_blocking=True), x_b.to(device, non_blocking=True)
        self.dis_update(x_a, x_b, hyperparameters, of_dis)
        self.gen_update(x_a, x_b, hyperparameters, of_gen)
        self.update_average(x_a.shape[0])

    def update_average(self, images: int) -> None:
        """Take the generators into their moving average, after an iteration on `images` images of each domain here."""
        if self.average is not None:
            self.average.update(self.generators, images * self._processes)

    def _update_in_graph(
        self, x_a: Tensor, x_b: Tensor, hp: Hyperparameters, device: torch.device, noise: TrainingNoise
    ) -> None:
        for optimizer in (self.dis_opt, self.gen_opt):
            optimizer.make_capturable()
        self.update_learning_rate()
        of_dis, of_gen = noise
        loads = (self.dis_opt.loads, self.gen_opt.loads)
        key = (x_a.shape, x_b.shape, x_a.dtype, x_b.dtype, repr(hp), self.amp, self.impl, loads)
        if key not in self._graphs:
            if len(self._graphs) >= _MOST_GRAPHS:
                self._graphs.clear()
            count = len(of_dis)

            def iterate(x_a: Tensor, x_b: Tensor, noise: Sequence[Tensor]) -> None:
                self.dis_update(x_a, x_b, hp, noise[:count])
                self.gen_update(x_a, x_b, hp, noise[count:])

            like = x_a.to(device), x_b.to(device)
            self._graphs[key] = StepGraph(iterate, *like, [*of_dis, *of_gen])
        step = self._graphs[key]
        # Replays never overlap, and nothing that one writes is read after the next: all use the first one's memory.
        pool = next((other.graph.pool() for other in self._graphs.values() if other.graph is not None), None)
        step.run(x_a, x_b, [*of_dis, *of_gen], pool)
        if step.graph is not None:  # each graph writes to losses of its own
            step.losses = step.losses or {k: v for k, v in vars(self).items() if k.startswith("loss_")}
            vars(self).update(step.losses)

    def draw_noise(self, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None = None) -> TrainingNoise:
        """The noise of a discriminator and of a generator update, drawn in the published order.

        generator: draws it, on its own device. Without one torch's CPU generator does; where `noise_device` is a GPU
        that gives the seed of a generator there.
        """
        if generator is None and self.noise_device.type != "cpu":
            generator = torch.Generator(self.noise_device).manual_seed(int(torch.randint(2**63 - 1, ())))
        return self._noise("dis", x_a, x_b, generator), self._noise("gen", x_a, x_b, generator)

    def train(self, mode: bool = True) -> Any:
        self._codes = None  # their graph is as large as an iteration's; `sample` and `forward` come through here
        return super().train(mode)

    def _forget_graphs(self) -> None:
        self._graphs.clear()
        self._codes = None
        self._renew_scalers()  # one was in the middle of a step

    def update_learning_rate(self) -> None:
        before = [[group["lr"] for group in o.param_groups] for o in (self.dis_opt, self.gen_opt)]
        super().update_learning_rate()
        for optimizer, rates in zip((self.dis_opt, self.gen_opt), before):
            if isinstance(rates[0], Tensor):  # a graph reads these
                optimizer.set_rates(rates)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._graphs, self._codes = {}, None  # the parameters move
        before, device = list(self.parameters()), self.device
        super()._apply(fn, recurse)
        moved = dict(zip(before, self.parameters(), strict=True))
        for optimizer in (self.dis_opt, self.gen_opt):
            optimizer.follow(moved)
        if self.device != device:
            self._renew_scalers()
        self._skips.to(self.device)
        if self.average is not None:
            self.average.apply(fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_graphs": {}, "_codes": None, "_parallel": {}}

    # ---- files ----

    def save(self, snapshot_dir: str | Path, iterations: int) -> None:
        """The published files, and with a moving average ema_########.pt, in the layout of gen_########.pt."""
        states = self.average.states(self.generators) if self.average is not None else {}
        if states:
            save_atomically(states, Path(snapshot_dir, checkpoint_name("ema", iterations + 1)))
        super().save(snapshot_dir, iterations)

    def resume(self, checkpoint_dir: str | Path, hyperparameters: Hyperparameters) -> int:
        """As the reference's; the moving average is taken up where the folder has it."""
        iterations = super().resume(checkpoint_dir, hyperparameters)
        path = Path(checkpoint_dir, checkpoint_name("ema", iterations))
        if self.average is not None and path.is_file():
            images = images_seen(iterations, hyperparameters, self._processes)
            self.average.load(self.generators, load_average(path, self.generators), images)
        return iterations

    # ---- the two updates ----

    def dis_update(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> None:
        """One discriminator step on images [N, C, H, W] in [-1, 1].

        noise: for MUNIT [s_a, s_b], each [N, style_dim, 1, 1]; for UNIT [n_a, n_b], each of the code's shape.
        hyperparameters["accumulation"] (default 1) parts of the batch are computed one after the other.
        """
        self._skips.begin()
        with finite_statistics(self.dis_a, self.dis_b):
            if self.plain:
                self._refuse_accumulation(hyperparameters)
                with self._autocast():
                    super().dis_update(x_a, x_b, hyperparameters, noise)
                self._detach_losses("dis")
            else:
                self._descend("dis", self.dis_opt, x_a, x_b, hyperparameters, noise)

    def gen_update(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> None:
        """One generator step on images [N, C, H, W] in [-1, 1].

        noise: for MUNIT [s_a, s_b], each [N, style_dim, 1, 1]; for UNIT [n_a, n_b, n_b_recon, n_a_recon], each of the
        code's shape. Parts as in `dis_update`.
        """
        with finite_statistics(self.dis_a, self.dis_b):
            if self.plain:
                self._refuse_accumulation(hyperparameters)
                with self._autocast():
                    super().gen_update(x_a, x_b, hyperparameters, noise)
                self._detach_losses("gen")
            else:
                self._descend("gen", self.gen_opt, x_a, x_b, hyperparameters, noise)

    def _dis_loss(self, x_a: Tensor, x_b: Tensor, noise: Noise, hp: Hyperparameters) -> Tensor:
        self._codes = None
        keep = hp.get("accumulation", 1) == 1  # the codes of all parts would be what accumulation is to save
        with self._autocast(), shared_weights():
            with nullcontext() if keep else torch.no_grad():
                codes, versions = self._encode(x_a, x_b), self._versions(x_a, x_b)
            with torch.no_grad():
                x_ab, x_ba = self._translate(codes, x_a, x_b, noise)
            self.loss_dis_a = self.dis_a.calc_dis_loss(x_ba, x_a)
            self.loss_dis_b = self.dis_b.calc_dis_loss(x_ab, x_b)
            self.loss_dis_total = hp["gan_w"] * self.loss_dis_a + hp["gan_w"] * self.loss_dis_b
        if keep:
            self._codes = _KeptCodes(x_a, x_b, versions, codes)
        return self.loss_dis_total

    def _gen_loss(self, x_a: Tensor, x_b: Tensor, noise: Noise, hp: Hyperparameters) -> Tensor:
        with frozen(self.dis_a, self.dis_b), self._autocast(), shared_weights():
            losses, x_ab, x_ba = self._generate(x_a, x_b, noise, hp["recon_x_cyc_w"] > 0)
            for name, value in losses.items():
                setattr(self, f"loss_{name}", value)
            self.loss_gen_adv_a = self.dis_a.calc_gen_loss(x_ba)
            self.loss_gen_adv_b = self.dis_b.calc_gen_loss(x_ab)
            self._perceptual_losses(x_a, x_b, x_ab, x_ba)
            self._total(hp)
        return self.loss_gen_total

    def _translate(self, codes: Codes, x_a: Tensor, x_b: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """(x_ab, x_ba) for the discriminators."""
        raise NotImplementedError

    def _generate(self, x_a: Tensor, x_b: Tensor, noise: Noise, cycle: bool) -> objectives.Generated:
        raise NotImplementedError

    # ---- codes that both updates of an iteration need ----

    def _versions(self, x_a: Tensor, x_b: Tensor) -> list[Any]:
        """What tells that the images, the generators' parameters and the precision have not changed."""
        parameters = (p for net in (self.gen_a, self.gen_b) for p in net.parameters())
        kind = x_a.device.type
        precision = (self.amp, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        return [precision, *((t.data_ptr(), t._version, t.requires_grad) for t in (x_a, x_b, *parameters))]

    def _encode(self, x_a: Tensor, x_b: Tensor) -> Codes:
        raise NotImplementedError

    def _kept_codes(self, x_a: Tensor, x_b: Tensor) -> Codes:
        """The codes with their graph: the discriminator update's, if nothing has changed since, else new ones."""
        kept, self._codes = self._codes, None
        if kept is not None and kept.x_a is x_a and kept.x_b is x_b and kept.versions == self._versions(x_a, x_b):
            return kept.codes
        return self._encode(x_a, x_b)


class MUNIT_Trainer(_Fast, reference.MUNIT_Trainer):
    """`reference.MUNIT_Trainer` over fused networks.

    impl: who computes, as in `munit_fast.functional`; "reference" trains with the reference networks and updates.
    amp: "off", "bf16", "fp16" (with loss scaling) or "auto" (bf16 where the hardware has it).
    checkpointing: the backward computes the networks' activations again instead of keeping them.
    Two keys of `hyperparameters` are not published: `accumulation`, the parts that a batch is computed in, and
    `ema_half_life`, in images, of the generators' moving average (`average`); without them there is neither.
    A generator update on the very tensors of the discriminator update before it takes over its content codes; writing
    to parameters through `.data` between the two would go unnoticed. Raises ValueError for an unknown impl or amp.
    """

    gen_a: AdaINGen
    gen_b: AdaINGen
    generator = AdaINGen

    def __init__(
        self, hyperparameters: Hyperparameters, impl: str = "auto", amp: str = "off", checkpointing: bool = False
    ) -> None:
        super().__init__(hyperparameters)
        self.loss_gen_cycrecon_x_a = self.loss_gen_cycrecon_x_b = 0.0
        self._set_up(impl, amp, checkpointing)

    def _noise(self, kind: str, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        return [torch.randn(x.shape[0], self.style_dim, 1, 1, generator=generator) for x in (x_a, x_b)]

    def _encode(self, x_a: Tensor, x_b: Tensor) -> Codes:
        return objectives.munit_codes(self.gen_a, self.gen_b, x_a, x_b)

    def _translate(self, codes: Codes, x_a: Tensor, x_b: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        s_a, s_b = self._styles(x_a, x_b, noise)
        c_a, c_b = codes.detached()
        x_ba = self.gen_a.decode(c_b, s_a)
        return self.gen_b.decode(c_a, s_b), x_ba

    def _generate(self, x_a: Tensor, x_b: Tensor, noise: Noise, cycle: bool) -> objectives.Generated:
        s_a, s_b = self._styles(x_a, x_b, noise)
        codes = self._kept_codes(x_a, x_b)
        return objectives.munit_generator(self.gen_a, self.gen_b, x_a, x_b, codes, s_a, s_b, cycle)


class UNIT_Trainer(_Fast, reference.UNIT_Trainer):
    """`reference.UNIT_Trainer` over fused networks; impl, amp and checkpointing as in `MUNIT_Trainer`."""

    gen_a: VAEGen
    gen_b: VAEGen
    generator = VAEGen

    def __init__(
        self, hyperparameters: Hyperparameters, impl: str = "auto", amp: str = "off", checkpointing: bool = False
    ) -> None:
        super().__init__(hyperparameters)
        self.loss_gen_cyc_x_a = self.loss_gen_cyc_x_b = 0.0
        self._set_up(impl, amp, checkpointing)

    @property
    def noise_device(self) -> torch.device:
        """The trainer's device: noise as large as the codes takes the CPU longer to draw than a GPU to train with."""
        return self.device

    def _noise(self, kind: str, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        a, b = (self._code_size(x) for x in (x_a, x_b))
        device = torch.device("cpu") if generator is None else generator.device
        sizes = (a, b) if kind == "dis" else (a, b, b, a)
        return [torch.randn(size, generator=generator, device=device) for size in sizes]

    def _code_size(self, x: Tensor) -> tuple[int, ...]:
        encoder: Any = self.gen_a.enc
        height, width = x.shape[2:]
        for _ in range(len(encoder.layers) - 2):  # 4×4 convolutions of stride 2, padded by 1
            height, width = height // 2, width // 2
        return (x.shape[0], encoder.output_dim, height, width)

    def _encode(self, x_a: Tensor, x_b: Tensor) -> Codes:
        return objectives.unit_codes(self.gen_a, self.gen_b, x_a, x_b)

    @staticmethod
    def _draws(noise: Noise, count: int) -> Any:
        """The next noise of a code's shape and dtype: recorded, or from the CPU generator."""
        given = reference.trainers._replay(noise, count)

        def draw(mean: Tensor) -> Tensor:
            n = next(given)
            return (torch.randn(mean.shape) if n is None else n).to(mean)

        return draw

    def _translate(self, codes: Codes, x_a: Tensor, x_b: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        draw = self._draws(noise, 2)
        h_a, h_b = codes.detached()
        z_a, z_b = h_a + draw(h_a), h_b + draw(h_b)
        x_ba = self.gen_a.decode(z_b)
        return self.gen_b.decode(z_a), x_ba

    def _generate(self, x_a: Tensor, x_b: Tensor, noise: Noise, cycle: bool) -> objectives.Generated:
        codes, draw = self._kept_codes(x_a, x_b), self._draws(noise, 4)
        return objectives.unit_generator(self.gen_a, self.gen_b, x_a, x_b, codes, draw, cycle)
