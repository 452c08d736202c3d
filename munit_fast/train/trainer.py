"""The published trainers over the fast networks: same surface, files and mathematics as `munit_fast.reference`.

An iteration reads from top to bottom: `update` runs it, as one CUDA graph where that works; `_iterate` encodes the
images and takes the two steps; `_backward_and_step` is what a step does. The losses are in `train/losses.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from munit_fast import reference
from munit_fast.amp import AMP, Workload, amp_dtype, autocast
from munit_fast.io.checkpoints import checkpoint_name, load_average, save_atomically
from munit_fast.models import step_weights
from munit_fast.models.discriminators import check_gan_type
from munit_fast.models.networks import (
    AdaINGen,
    Fused,
    MsImageDis,
    ResidualDis,
    VAEGen,
    fused_blocks,
    keep_steps,
    shared_weights,
)
from munit_fast.models.step_weights import StepWeights
from munit_fast.reference.trainers import Hyperparameters, Losses, Noise
from munit_fast.reference.weight_norms import advance_vectors, is_normed
from munit_fast.train import cuda_graph
from munit_fast.train.cuda_graph import CaptureError, StepGraphs
from munit_fast.train.distributed import broadcast_networks
from munit_fast.train.ema import GeneratorAverage, images_seen
from munit_fast.train.gradients import FlatGradients
from munit_fast.train.losses import (
    CachedCodes,
    Codes,
    MUNITObjective,
    Objective,
    ReferenceObjective,
    UNITObjective,
    detached,
    mean_losses,
    split_batch,
)
from munit_fast.train.nonfinite import SkipRecord, finite_statistics, nan_if_nonfinite
from munit_fast.train.optim import FusedAdam, LossScaling, initial_rate, step_async
from munit_fast.train.step_options import StepOptions

__all__ = ["MUNIT_Trainer", "UNIT_Trainer"]

TrainingNoise = tuple[Sequence[Tensor], Sequence[Tensor]]  # of a discriminator and of a generator update


class _Trainer(reference.trainers._Trainer):
    """What MUNIT_Trainer and UNIT_Trainer share: the iteration, its two updates, and what a step needs."""

    gen_a: Any
    gen_b: Any
    dis_a: Any
    dis_b: Any
    dis_opt: FusedAdam
    gen_opt: FusedAdam
    discriminator = MsImageDis
    residual_discriminator = ResidualDis
    fused_objective: ClassVar[Objective]
    terms_that_may_be_off: ClassVar[tuple[str, ...]]
    algorithm: ClassVar[str]

    def __init__(
        self, hyperparameters: Hyperparameters, impl: str = "auto", amp: str = "off", checkpointing: bool = False
    ) -> None:
        super().__init__(hyperparameters)
        self.impl, self.amp = impl, amp
        self.objective = self._objective(impl)
        self.options = self._checked_options(hyperparameters, impl, amp)
        for update, optimizer in (("dis", self.dis_opt), ("gen", self.gen_opt)):
            rate = initial_rate(hyperparameters, update)
            optimizer.param_groups[0].update(lr=rate, initial_lr=rate)
        half_life = float(hyperparameters.get("ema_half_life", 0))
        self.average = GeneratorAverage(half_life) if half_life else None
        self._scaling = LossScaling()
        self._graphs: StepGraphs[Losses] = StepGraphs()
        self._cached_codes: CachedCodes | None = None
        self._updates_losses: Losses = {}  # what the published updates reported
        vars(self).update(dict.fromkeys(self.terms_that_may_be_off, 0.0))
        self._processes = 1  # that share a batch
        self._weights: dict[torch.dtype | None, StepWeights] = {}  # by the dtype of their copies: graphs hold them
        self._gradients: dict[str, FlatGradients] = {}  # of "dis" and "gen"
        for module in (self.gen_a, self.gen_b, self.dis_a, self.dis_b):
            assert isinstance(module, Fused)
            module.set_impl(impl)
            module.set_checkpointing(checkpointing)
            module.hold_vectors()
        keep_steps(self.gen_a, self.gen_b, *(hyperparameters.get(f"range_{d}", "dtype") for d in "ab"))

    # ---- what is refused ----

    @classmethod
    def check(cls, hyperparameters: Hyperparameters, impl: str = "auto", amp: str = "off", processes: int = 1) -> None:
        """Refuse, before any network is made, what a training would.

        Args:
            hyperparameters: the published configuration keys.
            impl: the backend.
            amp: as the trainer takes it.
            processes: that share a batch.

        Raises:
            ValueError: the trainer or the backend does not have what is asked for.
        """
        check_gan_type(hyperparameters["dis"]["gan_type"], impl)
        cls._checked_options(hyperparameters, impl, amp)
        if hyperparameters.get("accumulation", 1) != 1:
            cls._objective(impl).require("accumulation")
        if processes > 1:
            cls._objective(impl).require("distribute")

    @classmethod
    def _objective(cls, impl: str) -> Objective:
        return ReferenceObjective() if impl == "reference" else cls.fused_objective

    @classmethod
    def _checked_options(cls, hp: Hyperparameters, impl: str, amp: str) -> StepOptions:
        """The options of the updates, where the backend has them, and the precision."""
        if amp not in AMP:
            raise ValueError(f"amp must be one of {', '.join(AMP)}; got {amp!r}")
        if amp == "fp16":
            cls._objective(impl).require("fp16")
        options = StepOptions(hp, cls.algorithm)
        if options.named:
            cls._objective(impl).require("options", f"{', '.join(options.named)}: ")
        return options

    # ---- a whole iteration ----

    def update(
        self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: TrainingNoise | None = None
    ) -> Losses:
        """One iteration: update_learning_rate, dis_update, gen_update, update_average; on a GPU, in one CUDA graph.

        The graph comes with the fourth iteration. The losses are then its tensors: the next iteration overwrites them.
        What keeps a GPU from capturing is logged once, and the iterations run eagerly. A `dis_update` or `gen_update`
        of a subclass is called; without one, both steps share the content codes directly.

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1], on any device.
            x_b: images of domain B, likewise.
            hyperparameters: the published configuration keys.
            noise: as `draw_noise` returns it; None draws it.

        Returns:
            Every loss by its published name, a scalar tensor without a graph or 0.0 for a term that is off; of optional
            terms those that are on, with the newest value where only some iterations compute one. They are the
            trainer's attributes, too.

        Raises:
            ValueError: hyperparameters["accumulation"] does not divide the batch, or the trainer is
                impl="reference" and it is not 1.
        """
        noise = noise or self.draw_noise(x_a, x_b)
        self._cached_codes = None  # a capture cannot use a graph from outside
        losses = self._iterate_in_graph(x_a, x_b, hyperparameters, noise)
        if losses is None:
            self.update_learning_rate()
            x_a, x_b = (x.to(self.device, non_blocking=True) for x in (x_a, x_b))
            losses = self._iterate(x_a, x_b, hyperparameters, noise)
        self.update_average(x_a.shape[0])
        losses = self.options.terms.with_last(losses, self._processes)
        vars(self).update(losses)
        return losses

    def _iterate(self, x_a: Tensor, x_b: Tensor, hp: Hyperparameters, noise: TrainingNoise) -> Losses:
        """Encode, discriminator step, generator step: the steps share the content codes, which neither changes."""
        of_dis, of_gen = noise
        if self._overrides_an_update():
            self._updates_losses = {}  # one that reports nothing leaves no earlier iteration's
            self.dis_update(x_a, x_b, hp, of_dis)
            self.gen_update(x_a, x_b, hp, of_gen)
            return dict(self._updates_losses)
        codes = self._encode(x_a, x_b, hp)
        losses = self._discriminator_step(x_a, x_b, codes, hp, of_dis)
        return losses | self._generator_step(x_a, x_b, codes, hp, of_gen)

    def _overrides_an_update(self) -> bool:
        """Whether a subclass, or someone on this object, has a `dis_update` or `gen_update` of their own."""
        return any(
            getattr(getattr(self, name), "__func__", None) is not getattr(_Trainer, name)
            for name in ("dis_update", "gen_update")
        )

    def _encode(self, x_a: Tensor, x_b: Tensor, hp: Hyperparameters) -> Codes | None:
        """What both steps need of the images; None: each step encodes them."""
        self._refresh_weights("gen")
        if hp.get("accumulation", 1) != 1:  # the codes of all parts would be what accumulation is to save
            return None
        with self._autocast(), shared_weights(), step_weights.use(self._step_weights()):
            return self.objective.encode(self, x_a, x_b)

    def _discriminator_step(
        self, x_a: Tensor, x_b: Tensor, codes: Codes | None, hp: Hyperparameters, noise: Noise
    ) -> Losses:
        self._skips.begin()
        self._refresh_weights("dis")
        with finite_statistics(self.dis_a, self.dis_b), self.options.discriminator_step(self, hp):
            return self._backward_and_step("dis", self.dis_opt, x_a, x_b, codes, hp, noise)

    def _generator_step(
        self, x_a: Tensor, x_b: Tensor, codes: Codes | None, hp: Hyperparameters, noise: Noise
    ) -> Losses:
        self._refresh_weights("dis")
        if codes is None:
            self._refresh_weights("gen")
        with finite_statistics(self.dis_a, self.dis_b):
            return self._backward_and_step("gen", self.gen_opt, x_a, x_b, codes, hp, noise)

    def _backward_and_step(
        self,
        update: str,
        optimizer: FusedAdam,
        x_a: Tensor,
        x_b: Tensor,
        codes: Codes | None,
        hp: Hyperparameters,
        noise: Noise,
    ) -> Losses:
        """The gradient of loss_<update>_total, its mean over the parts of the batch, and one step if it is finite."""
        count = hp.get("accumulation", 1)
        if count != 1:
            self.objective.require("accumulation")
        weights, gradients = self._step_weights(), self._flat_gradients(update)
        if weights is None or gradients is None:
            optimizer.zero_grad()
        else:
            weights.forget(update)
            gradients.begin()
        scaler = self._scaler(update)
        noise = self._with_options(update, x_a, x_b, noise)
        parts: list[Losses] = []
        for a, b, n in split_batch(count, x_a, x_b, noise):
            losses = self._losses(update, a, b, codes, n, hp)
            total = losses[f"loss_{update}_total"]
            loss = total / count if count > 1 else total
            (loss if scaler is None else scaler.scale(loss)).backward(nan_if_nonfinite(total))
            parts.append(detached(losses))
            if weights is not None and gradients is not None:
                gradients.add(weights.collect(update))
        if gradients is not None:
            gradients.finish(self._processes)
        if scaler is None and not self._on_gpu:
            self._step(optimizer)
        else:
            step_async(optimizer, scaler, self._skips, None if gradients is None else gradients.tensors)
        for network in (self.discriminators if update == "dis" else self.generators).values():
            advance_vectors(network)  # after the weights have changed, and at no other time
        return parts[0] if count == 1 else mean_losses(parts)

    def _with_options(self, update: str, x_a: Tensor, x_b: Tensor, noise: Noise) -> Sequence[Tensor]:
        """The noise of an update, drawn here where it was not given: all of it, or what options add."""
        published = noise or self._draw(update, x_a, x_b, None)
        count = getattr(self.objective, "published_noise", {}).get(update, len(published))
        return self.options.complete(published, count, update, self, x_a, x_b)

    def _losses(self, update: str, *arguments: Any) -> Losses:
        """The losses of the "dis" or "gen" update, under autocast; arguments as `Objective` takes them."""
        compute = self.objective.dis_losses if update == "dis" else self.objective.gen_losses
        with self._autocast(), step_weights.use(self._step_weights()):
            return compute(self, *arguments)

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        before = self.skipped_steps
        super()._step(optimizer)
        if self.skipped_steps != before:
            self._skips.values[-1] = 1

    def update_learning_rate(self) -> None:
        before = [[group["lr"] for group in o.param_groups] for o in (self.dis_opt, self.gen_opt)]
        super().update_learning_rate()
        for optimizer, rates in zip((self.dis_opt, self.gen_opt), before):
            if isinstance(rates[0], Tensor):  # a graph reads these
                optimizer.set_rates(rates)

    def update_average(self, images: int) -> None:
        """Take the generators into their moving average, after an iteration on `images` images of each domain here."""
        if self.average is not None:
            self.average.update(self.generators, images * self._processes)

    # ---- the published updates, from the same parts ----

    def dis_update(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> None:
        """One discriminator step.

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1], on the trainer's device.
            x_b: images of domain B, likewise.
            hyperparameters: the published keys; "accumulation" (default 1) parts of the batch run one after the other.
            noise: for MUNIT [s_a, s_b], each [N, style_dim, 1, 1]; for UNIT [n_a, n_b], each of the code's shape.
                None draws it with torch's CPU generator.

        Raises:
            ValueError: as `update`.
        """
        self._cached_codes = None
        codes = self._encode(x_a, x_b, hyperparameters)
        cached = None if codes is None else CachedCodes(self, x_a, x_b, codes, self.amp)
        self._report(self._discriminator_step(x_a, x_b, codes, hyperparameters, noise))
        self._cached_codes = cached

    def gen_update(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> None:
        """One generator step; after `dis_update` on the very same tensors it takes over its content codes.

        Args:
            x_a: images of domain A, [N, C, H, W] in [-1, 1], on the trainer's device.
            x_b: images of domain B, likewise.
            hyperparameters: as `dis_update`'s.
            noise: for MUNIT [s_a, s_b], each [N, style_dim, 1, 1]; for UNIT [n_a, n_b, n_b_recon, n_a_recon], each of
                the code's shape. None draws it with torch's CPU generator.

        Raises:
            ValueError: as `update`.
        """
        cached, self._cached_codes = self._cached_codes, None
        codes = None if cached is None else cached.get(self, x_a, x_b, self.amp)
        self._report(self._generator_step(x_a, x_b, codes, hyperparameters, noise))

    def _report(self, losses: Losses) -> None:
        """Set the published attributes."""
        vars(self).update(losses)
        self._updates_losses |= losses

    # ---- one CUDA graph ----

    def _iterate_in_graph(self, x_a: Tensor, x_b: Tensor, hp: Hyperparameters, noise: TrainingNoise) -> Losses | None:
        """update_learning_rate and `_iterate` as one CUDA graph; None, with nothing done, where that cannot be."""
        device = self.device
        reason = self._graphs.failure or cuda_graph.unsupported_reason(self, device)
        if reason is None:
            of_dis, of_gen = noise
            count = len(of_dis)

            def iterate(x_a: Tensor, x_b: Tensor, noise: Sequence[Tensor]) -> Losses:
                return self._iterate(x_a, x_b, hp, (noise[:count], noise[count:]))

            for optimizer in (self.dis_opt, self.gen_opt):
                optimizer.make_capturable()
            self.update_learning_rate()
            loads = (self.dis_opt.loads, self.gen_opt.loads)
            trained = tuple(len(group["params"]) for o in (self.dis_opt, self.gen_opt) for group in o.param_groups)
            due = self.options.due(hp, self.iterations)
            key = (x_a.shape, x_b.shape, x_a.dtype, x_b.dtype, repr(hp), self.amp, self.impl, loads, trained, due)
            try:
                return self._graphs.run(key, iterate, device, x_a, x_b, [*of_dis, *of_gen])
            except CaptureError as error:
                reason = f"the capture failed: {error}"
            self._graphs = StepGraphs(failure=reason)
            self._scaling.renew(device)  # one was in the middle of a step
            self.iterations -= 1
        if device.type == "cuda":
            cuda_graph.warn_once(f"training without a CUDA graph: {reason}")
        return None

    def release_graphs(self) -> None:
        """Give up the CUDA graphs and their memory; `update` captures new ones.

        NCCL waits for graphs that hold an exchange before it ends: call this before
        torch.distributed.destroy_process_group.
        """
        if any(step.graph is not None for step in self._graphs.by_key.values()):
            torch.cuda.synchronize(self.device)
        self._graphs.by_key.clear()

    # ---- weights and gradients of a step ----

    @property
    def _on_gpu(self) -> bool:
        """Whether launches are what an iteration has to save."""
        return self.device.type != "cpu"

    @property
    def _gathers(self) -> bool:
        """Whether weights are copied and gradients gathered for all parameters at once.

        A GPU saves launches by it, and processes exchange one buffer. One process on a CPU would only copy more.
        """
        return self.impl != "reference" and (self._on_gpu or self._processes > 1)

    def _step_weights(self) -> StepWeights | None:
        """What the networks compute a step with; None: with their parameters."""
        if not self._gathers:
            return None
        dtype = self._amp_dtype() if self._on_gpu else None  # a CPU's convolutions read the parameters themselves
        if dtype not in self._weights:
            pairs = {"dis": (self.dis_a, self.dis_b), "gen": (self.gen_a, self.gen_b)}
            blocks = {update: [b for net in pair for b in fused_blocks(net)] for update, pair in pairs.items()}
            if self._on_gpu and not self._weights:
                convs = [block.conv for of_update in blocks.values() for block, _ in of_update]
                self._lay_out([conv.weight for conv in convs if not is_normed(conv)])
            self._weights[dtype] = StepWeights(blocks, dtype)
        return self._weights[dtype]

    def _lay_out(self, weights: Iterable[nn.Parameter]) -> None:
        """Keep weights, and what belongs to them, in channels_last, as the convolutions of a GPU read them."""
        for weight in weights:
            # Not contiguous(): with one channel it keeps strides that torch.empty would not give.
            weight.data = torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight.data)
        for optimizer in (self.dis_opt, self.gen_opt):
            optimizer.follow({})
        if self.average is not None:
            self.average.follow(self.generators)

    def _refresh_weights(self, update: str) -> None:
        if (weights := self._step_weights()) is not None:
            weights.refresh(update)

    def _flat_gradients(self, update: str) -> FlatGradients | None:
        """The buffer of an update's gradients; None: each parameter has its own."""
        if (weights := self._step_weights()) is None:
            return None
        optimizer, flat = self.dis_opt if update == "dis" else self.gen_opt, self._gradients.get(update)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if flat is None or list(map(id, flat.parameters)) != list(map(id, parameters)):
            flat = self._gradients[update] = FlatGradients(parameters, weights.unused[update])
        return flat

    # ---- noise ----

    @property
    def noise_device(self) -> torch.device:
        """Where the noise of `update` and of training runs is drawn."""
        return torch.device("cpu")

    def draw_noise(self, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None = None) -> TrainingNoise:
        """The noise of a discriminator and of a generator update, drawn in the published order.

        Args:
            x_a: images of domain A, [N, C, H, W]; only the shape matters.
            x_b: images of domain B, likewise.
            generator: draws it, on its own device. Without one torch's CPU generator does; where `noise_device` is a
                GPU that gives the seed of a generator there.
        """
        if generator is None and self.noise_device.type != "cpu":
            generator = torch.Generator(self.noise_device).manual_seed(int(torch.randint(2**63 - 1, ())))
        of_dis, of_gen = (self._draw(update, x_a, x_b, generator) for update in ("dis", "gen"))
        options = self.options
        of_dis += options.draw("dis", self, x_a, x_b, generator)
        return of_dis, of_gen + options.draw("gen", self, x_a, x_b, generator)

    def _draw(self, update: str, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """The noise of one update ("dis" or "gen") in the published order; generator: None is the CPU's."""
        raise NotImplementedError

    # ---- precision, processes, devices ----

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(self.parameters()).device

    @property
    def skips(self) -> SkipRecord:
        """Which of the last iterations had a step that was not taken."""
        return self._skips

    @property
    def skipped_steps(self) -> int:
        """Steps that were not taken because their gradient was not finite. Reading it waits for a GPU."""
        return self._skips.total

    @skipped_steps.setter
    def skipped_steps(self, value: int) -> None:
        if "_skips" not in vars(self):
            self._skips = SkipRecord()
        self._skips.values[0] = value  # a graph adds to this one

    def distribute(self) -> None:
        """Average gradients over the processes of torch.distributed, each with its part of the batch.

        The networks take the first process's parameters.

        Raises:
            RuntimeError: there is no process group.
            ValueError: the trainer is impl="reference", which trains in one process.
        """
        self.objective.require("distribute")
        broadcast_networks(self.dis_a, self.dis_b, self.gen_a, self.gen_b)
        self._processes = torch.distributed.get_world_size()

    def _adam(self, modules: Iterable[nn.Module]) -> FusedAdam:
        return FusedAdam(super()._adam(modules).param_groups)

    def _amp_dtype(self) -> torch.dtype | None:
        hp = self.hyperparameters
        return amp_dtype(self.amp, self.device, Workload.of(hp, hp.get("batch_size", 1), training=True))

    def _autocast(self) -> Any:
        return autocast(self._amp_dtype(), self.device)

    def _scaler(self, update: str) -> torch.amp.GradScaler | None:
        return self._scaling.scaler(update, self.device) if self._amp_dtype() == torch.float16 else None

    def scaler_states(self) -> dict[str, dict[str, Any]]:
        """The state of fp16's loss scaling, as plain values; {} without."""
        return self._scaling.states()

    def load_scalers(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Load what `scaler_states` returned; without fp16 it is ignored."""
        for name in ("gen", "dis"):
            scaler = self._scaler(name)
            if scaler is not None and states.get(name):
                scaler.load_state_dict(states[name])

    def train(self, mode: bool = True) -> Any:
        self._cached_codes = None  # their graph is as large as an iteration's; `sample` and `forward` come through here
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before, device = list(self.parameters()), self.device
        self._graphs.by_key.clear()  # the parameters move
        self._weights.clear()
        self._gradients.clear()
        self._cached_codes = None
        super()._apply(fn, recurse)
        moved = dict(zip(before, self.parameters(), strict=True))
        for optimizer in (self.dis_opt, self.gen_opt):
            optimizer.follow(moved)
        if self.device != device:
            self._scaling.renew(self.device)
        self._skips.to(self.device)
        self.options.to(self.device)
        if self.average is not None:
            self.average.apply(fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        left_out: dict[str, Any] = {"_cached_codes": None, "_weights": {}, "_gradients": {}, "_processes": 1}
        return vars(self) | {"_graphs": StepGraphs(self._graphs.failure)} | left_out

    # ---- files ----

    def save(self, snapshot_dir: str | Path, iterations: int) -> None:
        """The published files, and with a moving average ema_########.pt, in the layout of gen_########.pt."""
        states = self.average.states(self.generators) if self.average is not None else {}
        if states:
            save_atomically(states, Path(snapshot_dir, checkpoint_name("ema", iterations + 1)))
        super().save(snapshot_dir, iterations)

    def resume(self, checkpoint_dir: str | Path, hyperparameters: Hyperparameters) -> int:
        """As the reference's; the moving average is loaded where the folder has it."""
        iterations = super().resume(checkpoint_dir, hyperparameters)
        path = Path(checkpoint_dir, checkpoint_name("ema", iterations))
        if self.average is not None and path.is_file():
            images = images_seen(iterations, hyperparameters, self._processes)
            self.average.load(self.generators, load_average(path, self.generators), images)
        return iterations


class MUNIT_Trainer(_Trainer, reference.MUNIT_Trainer):
    """`reference.MUNIT_Trainer` (Huang et al., ECCV 2018) over fused networks.

    Args:
        hyperparameters: the published configuration keys, and two that are not published: `accumulation`, the parts
            that a batch is computed in, and `ema_half_life`, in images, of the generators' moving average
            (`average`); without them there is neither.
        impl: the backend, as in `munit_fast.functional`; "reference" trains with the reference networks and losses.
        amp: "off", "bf16", "fp16" (with loss scaling) or "auto" (bf16 where the hardware has it).
        checkpointing: the backward computes the networks' activations again instead of keeping them.

    A generator update on the very tensors of the discriminator update before it takes over its content codes; writing
    to parameters through `.data` between the two would go unnoticed.

    Raises:
        ValueError: an unknown impl or amp, or amp="fp16" with impl="reference".
    """

    gen_a: AdaINGen
    gen_b: AdaINGen
    generator = AdaINGen
    algorithm = "MUNIT"
    fused_objective = MUNITObjective()
    terms_that_may_be_off = ("loss_gen_cycrecon_x_a", "loss_gen_cycrecon_x_b")

    def _draw(self, update: str, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        return [torch.randn(x.shape[0], self.style_dim, 1, 1, generator=generator) for x in (x_a, x_b)]


class UNIT_Trainer(_Trainer, reference.UNIT_Trainer):
    """`reference.UNIT_Trainer` (Liu et al., NeurIPS 2017) over fused networks; arguments as `MUNIT_Trainer`'s."""

    gen_a: VAEGen
    gen_b: VAEGen
    generator = VAEGen
    algorithm = "UNIT"
    fused_objective = UNITObjective()
    terms_that_may_be_off = ("loss_gen_cyc_x_a", "loss_gen_cyc_x_b")

    @property
    def noise_device(self) -> torch.device:
        """The trainer's device: noise as large as the codes takes the CPU longer to draw than a GPU to train with."""
        return self.device

    def _draw(self, update: str, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        a, b = (self._code_size(x) for x in (x_a, x_b))
        device = torch.device("cpu") if generator is None else generator.device
        sizes = (a, b) if update == "dis" else (a, b, b, a)
        return [torch.randn(size, generator=generator, device=device) for size in sizes]

    def _code_size(self, x: Tensor) -> tuple[int, ...]:
        encoder: Any = self.gen_a.enc
        height, width = x.shape[2:]
        for _ in range(len(encoder.layers) - 2):  # 4×4 convolutions of stride 2, padded by 1
            height, width = height // 2, width // 2
        return (x.shape[0], encoder.output_dim, height, width)
