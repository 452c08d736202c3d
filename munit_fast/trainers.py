"""The published trainers over the fast networks: same surface, files and mathematics as `munit_fast.reference`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from munit_fast import graph, objectives, reference
from munit_fast.graph import CaptureError, StepGraph
from munit_fast.networks import AdaINGen, Fused, MsImageDis, VAEGen, shared_weights
from munit_fast.objectives import Codes, frozen
from munit_fast.precision import amp_dtype, autocast
from munit_fast.reference.trainers import Hyperparameters, Noise

__all__ = ["MUNIT_Trainer", "UNIT_Trainer"]


class _FusedAdam(torch.optim.Adam):
    """Adam in one pass over memory. Its files are those of the published optimizer, which say nothing of that."""

    loads = 0  # how often a state was loaded: a graph from before holds the old moments

    def __init__(self, groups: Any) -> None:
        super().__init__(groups)
        self._step_supports_amp_scaling = True  # torch sets it for a flag that comes with the constructor only
        self.rates: list[float] = []  # what the tensors stand for, to all digits
        for group in self.param_groups:
            group["fused"], group["foreach"] = True, None

    def make_capturable(self) -> None:
        """Let a CUDA graph hold the step: the learning rate becomes a tensor, which `set_rates` writes to."""
        for group in self.param_groups:
            if not isinstance(group["lr"], Tensor):
                group["capturable"] = True
                self.rates.append(group["lr"])
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=group["params"][0].device)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        plain = {"fused": None, "capturable": False}
        rates = self.rates or [group["lr"] for group in self.param_groups]
        groups = [group | plain | {"lr": rate} for group, rate in zip(state["param_groups"], rates)]
        return state | {"param_groups": groups}

    def set_rates(self, tensors: list[Tensor]) -> None:
        """Write the groups' rates, which were just set as numbers, into their tensors."""
        self.rates = [group["lr"] for group in self.param_groups]
        for group, tensor in zip(self.param_groups, tensors):
            group["lr"] = tensor.fill_(group["lr"])

    def load_state_dict(self, state_dict: Any) -> None:
        # Said before loading: it decides where the step counts go.
        flags = {"fused": True, "foreach": None}
        groups = [group | flags for group in state_dict["param_groups"]]
        super().load_state_dict(state_dict | {"param_groups": groups})
        self.loads += 1
        self.rates = []


_MOST_GRAPHS = 4  # of one trainer; each has its own memory


class _KeptCodes(NamedTuple):
    """Codes with their graph, and what they were made of. The images are held, so that no other can pass for them."""

    x_a: Tensor
    x_b: Tensor
    versions: list[Any]
    codes: Codes


class _Fast(reference.trainers._Trainer):
    """What the two fast trainers share: backend, mixed precision, fused Adam, codes kept between the updates."""

    gen_a: Any
    gen_b: Any
    dis_a: Any
    dis_b: Any
    dis_opt: _FusedAdam
    gen_opt: _FusedAdam
    discriminator = MsImageDis
    loss_dis_total: Tensor
    loss_gen_total: Tensor

    def _set_up(self, impl: str, amp: str) -> None:
        self.amp = amp
        amp_dtype(amp, torch.device("cpu"))  # an unknown name is refused at once
        if impl == "reference" and amp == "fp16":
            raise ValueError("amp='fp16' needs loss scaling, which impl='reference' does not have; use 'bf16' or 'off'")
        self._codes: _KeptCodes | None = None
        self._graphs: dict[Any, StepGraph] = {}
        self._no_graph: str | None = None
        self._scalers: dict[str, torch.amp.GradScaler] = {}
        self.impl = impl
        for module in (self.gen_a, self.gen_b, self.dis_a, self.dis_b):
            assert isinstance(module, Fused)
            module.set_impl(impl)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def plain(self) -> bool:
        return self.impl == "reference"

    def _autocast(self) -> Any:
        return autocast(amp_dtype(self.amp, self.device), self.device)

    # ---- a whole iteration ----

    def update(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters) -> None:
        """One iteration: update_learning_rate, dis_update and gen_update; on a GPU, from the fourth on, one CUDA graph.

        x_a, x_b [N, C, H, W] in [-1, 1], on any device. The losses are then the graph's tensors: the next iteration
        overwrites them. What keeps a GPU from capturing is logged once, and the updates run one by one.
        """
        device = self.device
        reason = self._no_graph or graph.why_not(self, device)
        if reason is None:
            try:
                return self._update_in_graph(x_a, x_b, hyperparameters, device)
            except CaptureError as error:
                self._no_graph = reason = f"the capture failed: {error}"
                self._forget_graphs()
                self.iterations -= 1
        if device.type == "cuda":
            graph.warn_once(f"training without a CUDA graph: {reason}")
        self.update_learning_rate()
        x_a, x_b = x_a.to(device, non_blocking=True), x_b.to(device, non_blocking=True)
        self.dis_update(x_a, x_b, hyperparameters)
        self.gen_update(x_a, x_b, hyperparameters)

    def _update_in_graph(self, x_a: Tensor, x_b: Tensor, hp: Hyperparameters, device: torch.device) -> None:
        for optimizer in (self.dis_opt, self.gen_opt):
            optimizer.make_capturable()
        self.update_learning_rate()
        state = torch.get_rng_state()
        of_dis, of_gen = self._noise(x_a, x_b)
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
        try:
            step.run(x_a, x_b, [*of_dis, *of_gen])
        except CaptureError:
            torch.set_rng_state(state)
            raise
        if step.graph is not None:  # each graph writes to losses of its own
            step.losses = step.losses or {k: v for k, v in vars(self).items() if k.startswith("loss_")}
            vars(self).update(step.losses)

    def _noise(self, x_a: Tensor, x_b: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The noise of a discriminator and of a generator update, on the CPU, drawn in the published order."""
        raise NotImplementedError

    def _forget_graphs(self) -> None:
        self._graphs.clear()
        self._codes = None
        for key, scaler in list(self._scalers.items()):  # one that was in the middle of a step
            self._scalers[key] = torch.amp.GradScaler(self.device.type)
            self._scalers[key].load_state_dict(scaler.state_dict())

    def update_learning_rate(self) -> None:
        before = [[group["lr"] for group in o.param_groups] for o in (self.dis_opt, self.gen_opt)]
        super().update_learning_rate()
        for optimizer, rates in zip((self.dis_opt, self.gen_opt), before):
            if isinstance(rates[0], Tensor):  # a graph reads these
                optimizer.set_rates(rates)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._graphs, self._codes = {}, None  # the parameters move
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_graphs": {}, "_codes": None}

    @property
    def skipped_steps(self) -> int:
        """Steps that were not taken because their gradient was not finite. Reading it waits for a GPU."""
        return self._skipped + (0 if self._skipped_there is None else int(self._skipped_there))

    @skipped_steps.setter
    def skipped_steps(self, value: int) -> None:
        self._skipped: int = value
        there = vars(self).get("_skipped_there")
        self._skipped_there: Tensor | None = None if there is None else there.zero_()  # a graph adds to this one

    # ---- optimizers ----

    def _adam(self, modules: Iterable[nn.Module]) -> _FusedAdam:
        return _FusedAdam(super()._adam(modules).param_groups)

    def scaler_states(self) -> dict[str, dict[str, Any]]:
        """The state of fp16's loss scaling, as plain values; {} without."""
        return {name: scaler.state_dict() for name, scaler in self._scalers.items()}

    def load_scalers(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Take up what `scaler_states` gave."""
        for optimizer, name in ((self.gen_opt, "gen"), (self.dis_opt, "dis")):
            scaler = self._scaler(optimizer)
            if scaler is not None and states.get(name):
                scaler.load_state_dict(states[name])

    def _scaler(self, optimizer: torch.optim.Optimizer) -> torch.amp.GradScaler | None:
        if amp_dtype(self.amp, self.device) != torch.float16:
            return None
        name = "gen" if optimizer is self.gen_opt else "dis"
        if name not in self._scalers:
            self._scalers[name] = torch.amp.GradScaler(self.device.type)
        return self._scalers[name]

    def _descend(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """The gradient of `loss` and one step; a gradient that is not finite is counted and no step taken."""
        scaler = self._scaler(optimizer)
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is None and loss.device.type == "cpu":
            return self._step(optimizer)
        if scaler is not None:
            scaler.unscale_(optimizer)
        # Nothing is read back from a GPU: the optimizer itself looks at `found_inf`.
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # A scaler looks at the elements; without one, squares that overflow inside Adam count too.
        norm = torch.nn.utils.get_total_norm(gradients, norm_type=2.0 if scaler is None else torch.inf)
        found = 1 - torch.isfinite(norm).float()
        if self._skipped_there is None:
            self._skipped_there = torch.zeros_like(found)
        self._skipped_there += found
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
            return
        step: Any = optimizer
        step.found_inf, step.grad_scale = found, None
        optimizer.step()
        del step.found_inf, step.grad_scale

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

    # ---- the two updates ----

    def _translate(self, codes: Codes, x_a: Tensor, x_b: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """(x_ab, x_ba) for the discriminators."""
        raise NotImplementedError

    def _generate(self, x_a: Tensor, x_b: Tensor, noise: Noise, cycle: bool) -> objectives.Generated:
        raise NotImplementedError

    def dis_update(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> None:
        """One discriminator step on images [N, C, H, W] in [-1, 1].

        noise: for MUNIT [s_a, s_b], each [N, style_dim, 1, 1]; for UNIT [n_a, n_b], each of the code's shape.
        """
        hp = hyperparameters
        if self.plain:
            with self._autocast():
                return super().dis_update(x_a, x_b, hp, noise)
        self.dis_opt.zero_grad()
        self._codes = None
        with self._autocast(), shared_weights():
            codes, versions = self._encode(x_a, x_b), self._versions(x_a, x_b)
            with torch.no_grad():
                x_ab, x_ba = self._translate(codes, x_a, x_b, noise)
            self.loss_dis_a = self.dis_a.calc_dis_loss(x_ba, x_a)
            self.loss_dis_b = self.dis_b.calc_dis_loss(x_ab, x_b)
            self.loss_dis_total = hp["gan_w"] * self.loss_dis_a + hp["gan_w"] * self.loss_dis_b
        self._descend(self.loss_dis_total, self.dis_opt)
        self._codes = _KeptCodes(x_a, x_b, versions, codes)

    def gen_update(self, x_a: Tensor, x_b: Tensor, hyperparameters: Hyperparameters, noise: Noise = None) -> None:
        """One generator step on images [N, C, H, W] in [-1, 1].

        noise: for MUNIT [s_a, s_b], each [N, style_dim, 1, 1]; for UNIT [n_a, n_b, n_b_recon, n_a_recon], each of the
        code's shape.
        """
        hp = hyperparameters
        if self.plain:
            with self._autocast():
                return super().gen_update(x_a, x_b, hp, noise)
        self.gen_opt.zero_grad()
        with frozen(self.dis_a, self.dis_b), self._autocast(), shared_weights():
            losses, x_ab, x_ba = self._generate(x_a, x_b, noise, hp["recon_x_cyc_w"] > 0)
            for name, value in losses.items():
                setattr(self, f"loss_{name}", value)
            self.loss_gen_adv_a = self.dis_a.calc_gen_loss(x_ba)
            self.loss_gen_adv_b = self.dis_b.calc_gen_loss(x_ab)
            self._perceptual_losses(x_a, x_b, x_ab, x_ba)
            self._total(hp)
        self._descend(self.loss_gen_total, self.gen_opt)


class MUNIT_Trainer(_Fast, reference.MUNIT_Trainer):
    """`reference.MUNIT_Trainer` over fused networks.

    impl: who computes, as in `munit_fast.functional`; "reference" trains with the reference networks and updates.
    amp: "off", "bf16", "fp16" (with loss scaling) or "auto" (bf16 where the hardware has it).
    A generator update on the very tensors of the discriminator update before it takes over its content codes; writing
    to parameters through `.data` between the two would go unnoticed. Raises ValueError for an unknown impl or amp.
    """

    gen_a: AdaINGen
    gen_b: AdaINGen
    generator = AdaINGen

    def __init__(self, hyperparameters: Hyperparameters, impl: str = "auto", amp: str = "off") -> None:
        super().__init__(hyperparameters)
        self.loss_gen_cycrecon_x_a = self.loss_gen_cycrecon_x_b = 0.0
        self._set_up(impl, amp)

    def _noise(self, x_a: Tensor, x_b: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        draws = [[torch.randn(x.shape[0], self.style_dim, 1, 1) for x in (x_a, x_b)] for _ in range(2)]
        return draws[0], draws[1]

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
    """`reference.UNIT_Trainer` over fused networks; impl and amp as in `MUNIT_Trainer`."""

    gen_a: VAEGen
    gen_b: VAEGen
    generator = VAEGen

    def __init__(self, hyperparameters: Hyperparameters, impl: str = "auto", amp: str = "off") -> None:
        super().__init__(hyperparameters)
        self.loss_gen_cyc_x_a = self.loss_gen_cyc_x_b = 0.0
        self._set_up(impl, amp)

    def _noise(self, x_a: Tensor, x_b: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        a, b = (self._code_size(x) for x in (x_a, x_b))
        return [torch.randn(a), torch.randn(b)], [torch.randn(size) for size in (a, b, b, a)]

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
