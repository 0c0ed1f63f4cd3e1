"""How a method's weights are spread over ranks: each rank a copy, or each a share (FSDP2).

`Replicated` averages gradients over ranks in buckets of about 25 MB, while the backward pass goes on: hooks tell which
gradient is ready, and full buckets set out at once, in the same order on all ranks. It is not torch's
DistributedDataParallel, which watches one `forward` and its backward pass: here the loss and the logit scale lie
outside of any forward, and gradient caching makes several passes, of which only the last may average.

`Sharded` cuts weights, gradients and optimiser state into one share a rank (ZeRO-3). A model's blocks and what lies
around them are gathered when `forward`, `encode_image` or `encode_text` needs them. What the loss uses itself, scalars
like the logit scale and modules outside of the model, stays whole and is averaged as above, and so does what a method
changes between steps (`Model.kept_whole`).

Checkpoints know nothing of this: weights and optimiser state leave whole and by name, so that a training goes on with
other ranks and another sharding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.training.distributed import from_all_ranks
from orchestrator.training.method import Method
from orchestrator.training.optim import clip_gradients, names_of, parameters_of
from orchestrator.training.types import World

BUCKET_BYTES = 25 * 2**20


class Parallel:
    """What the loop asks of either way. With one rank everything is the identity."""

    def watch(self, parameters: Sequence[nn.Parameter]) -> None:
        """Take over the parameters of a new optimiser; the former ones are let go."""
        raise NotImplementedError

    def last_backward(self) -> AbstractContextManager[None]:
        """Inside, gradients may be averaged as they come. Backward passes outside of it only accumulate."""
        raise NotImplementedError

    def finish(self) -> None:
        """Complete the averaging: all gradients are means over ranks afterwards."""
        raise NotImplementedError

    def clip(self, parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        """Scale gradients in place to a global norm of at most `limit` (None: leave them); the norm before, a scalar
        equal on all ranks.
        """
        return clip_gradients(parameters, limit)

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors without gradient and unsharded (those that were shards: on the CPU). All ranks call it."""
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def full_state(self, module: nn.Module) -> dict[str, Tensor]:
        """A module's whole weights and buffers by name. All ranks call it."""
        return self.whole(module.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
        """Whole state tensors by parameter name, for instance {"model.x": {"step", "exp_avg", "exp_avg_sq"}}. All
        ranks call it.
        """
        pairs = zip(names_of(optimizer), parameters_of(optimizer), strict=True)
        return {name: self.whole(optimizer.state[parameter]) for name, parameter in pairs}

    def load_optimizer_state(
        self, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Give an optimiser the state that `optimizer_state` returned, under whatever sharding."""
        groups = optimizer.state_dict()["param_groups"]
        pairs = zip(names_of(optimizer), parameters_of(optimizer), strict=True)
        shares = {
            index: {key: self.share_like(parameter, value).clone() for key, value in state[name].items()}
            for index, (name, parameter) in enumerate(pairs)
            if state[name]  # empty: not yet stepped
        }
        optimizer.load_state_dict({"state": shares, "param_groups": groups})

    def share_like(self, parameter: Tensor, value: Tensor) -> Tensor:
        """This rank's share of a whole tensor that belongs to a parameter; a scalar is everybody's."""
        return value

    def local(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """What of the tensors lies on this rank, in their own memory and without gradient: for arithmetic element by
        element.
        """
        return [tensor.detach() for tensor in tensors]


def spread(method: Method, world: World, sharding: str) -> Parallel:
    """Spread a method's weights, which are in place and equal on all ranks, over them.

    `sharding` is "none" or "full"; one rank holds everything either way.
    """
    return Sharded(method, world) if sharding == "full" and world.size > 1 else Replicated(world)


class Replicated(Parallel):
    """Each rank a copy; gradients are averaged in buckets, in the order in which the first step brought them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._parameters: list[nn.Parameter] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._reset()

    def _reset(self) -> None:
        self._averaging = False
        self._arrived: list[int] = []  # indices of parameters, in the first step's order
        self._buckets: list[_Bucket] = []  # empty until the first step has shown the order
        self._bucket_of: dict[int, _Bucket] = {}
        self._next = 0  # the first bucket that has not set out

    def watch(self, parameters: Sequence[nn.Parameter]) -> None:
        for hook in self._hooks:
            hook.remove()
        self._parameters, self._hooks = list(parameters), []
        self._reset()
        if self.world.size > 1:
            for index, parameter in enumerate(self._parameters):
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._tell(index)))

    def _tell(self, index: int) -> Any:
        return lambda parameter: self._ready(index)

    @contextmanager
    def last_backward(self) -> Iterator[None]:
        self._averaging = True
        try:
            yield
        finally:
            self._averaging = False

    def _ready(self, index: int) -> None:
        """A gradient is complete on this rank."""
        if not self._averaging:
            return
        if not self._buckets:
            self._arrived.append(index)
            return
        self._bucket_of[index].missing -= 1
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            self._set_out()

    def _set_out(self) -> None:
        self._buckets[self._next].set_out()
        self._next += 1

    def finish(self) -> None:
        if self.world.size == 1:
            return
        if not self._buckets:
            self._fill_buckets()
        while self._next < len(self._buckets):
            self._set_out()
        for bucket in self._buckets:
            bucket.arrive(self.world.size)
        self._next = 0

    def _fill_buckets(self) -> None:
        """Buckets in the order of the first backward pass, on the first rank; what did not come in it is last."""
        order = from_all_ranks(self._arrived, self.world)[0]
        late = [index for index in range(len(self._parameters)) if index not in set(order)]
        for indices in (*_cut(order, self._parameters), *_cut(late, self._parameters)):
            bucket = _Bucket([self._parameters[index] for index in indices])
            self._buckets.append(bucket)
            self._bucket_of |= dict.fromkeys(indices, bucket)


def _cut(order: Iterable[int], parameters: Sequence[nn.Parameter]) -> list[list[int]]:
    """Neighbours of one dtype, at most about BUCKET_BYTES together."""
    groups: list[list[int]] = []
    kind, size = None, 0
    for index in order:
        parameter = parameters[index]
        num_bytes = parameter.numel() * parameter.element_size()
        if kind != parameter.dtype or size + num_bytes > BUCKET_BYTES:
            groups.append([])
            kind, size = parameter.dtype, 0
        groups[-1].append(index)
        size += num_bytes
    return groups


class _Bucket:
    """Gradients that travel together. A parameter without one is left out, on all ranks alike: their graphs are."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.missing = len(parameters)
        self._journey: tuple[Any, Tensor, list[Tensor]] | None = None

    def set_out(self) -> None:
        """Start the sum over ranks."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if gradients:
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            self._journey = (dist.all_reduce(flat, async_op=True), flat, gradients)

    def arrive(self, size: int) -> None:
        """Wait for the sum and put the mean in the gradients' place."""
        self.missing = len(self.parameters)
        if self._journey is None:
            return
        (work, flat, gradients), self._journey = self._journey, None
        work.wait()
        flat /= size
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])


class Sharded(Parallel):
    """Each rank a share of the model (FSDP2); whole parameters, and their averaging, are `Replicated`'s."""

    def __init__(self, method: Method, world: World) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh(world.device.type, (world.size,))
        model = method.model
        whole = {parameter for parameter in model.parameters() if parameter.numel() == 1} | set(model.kept_whole())
        for block in _blocks(model):
            fully_shard(block, mesh=mesh, ignored_params=whole)
        fully_shard(model, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
        for name in ("encode_image", "encode_text"):
            register_fsdp_forward_method(model, name)
        self._rest = Replicated(world)

    def watch(self, parameters: Sequence[nn.Parameter]) -> None:
        self._rest.watch([parameter for parameter in parameters if not _is_shard(parameter)])

    def last_backward(self) -> AbstractContextManager[None]:
        return self._rest.last_backward()  # shards are averaged in every pass: whole gradients would not fit

    def finish(self) -> None:
        self._rest.finish()

    def clip(self, parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        shares = self.local(gradient for gradient in gradients if _is_shard(gradient))
        wholes = self.local(gradient for gradient in gradients if not _is_shard(gradient))
        square = torch.nn.utils.get_total_norm(shares) ** 2
        dist.all_reduce(square)
        norm = (square + torch.nn.utils.get_total_norm(wholes).to(square) ** 2).sqrt()
        if limit is not None:
            torch._foreach_mul_([*shares, *wholes], (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        plain: dict[str, Any] = super().whole(tensors)
        return {name: t.full_tensor().cpu() if _is_shard(t) else t for name, t in plain.items()}

    def share_like(self, parameter: Tensor, value: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(parameter, DTensor) or value.ndim == 0:
            return value
        mesh = parameter.device_mesh
        return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)

    def local(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        mine: list[Any] = super().local(tensors)
        return [tensor.to_local() if _is_shard(tensor) else tensor for tensor in mine]


def _is_shard(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of a model: members of its outermost lists, for instance a transformer's blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)
