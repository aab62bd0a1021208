"""A device that is not there: tensors that live in memory and say that they are on a GPU.

They keep the rules of torch's FakeTensorMode (operands of one operation are on one device, but for single numbers and for
indices that are on the processor) and compute real numbers all the same, so that code whose steps depend on values runs to its
end, and its result can be compared with the processor's. What a device cannot do raises: float64 on ``mps``, ``numpy()``, and a
fused optimizer whose steps lie on the processor. What makes the processor wait for the device is counted.

A *hollow* device holds shapes and no numbers (tensors of PyTorch's ``meta`` device), so that models of any size fit on it, and
weighs them: bytes of live storages, and their peak. What the processor reads from it is a plausible value, always the same.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

HERE = torch.device("cpu")
META = torch.device("meta")
ROUND = 512
"""Bytes that CUDA's allocator rounds a block up to."""
FOUND = 16
"""Entries of a row that a search on a hollow device finds."""
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
BETWEEN = ("aten::copy_", "aten::_to_copy", "aten::set_.source_Tensor")
WAITS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::bincount",
)
STRICT = ("aten::_fused_adamw_", "aten::_fused_adam_")


class DeviceMismatch(RuntimeError):
    """Operands of one operation are on several devices, or an operation does not exist on the device."""


class There(torch.Tensor):
    """A tensor that says that it is on a device. Only inside :class:`Device`."""

    where: torch.device  # type: ignore[assignment]

    @staticmethod
    def put(held: torch.Tensor, where: torch.device) -> There:  # type: ignore[override]
        """A tensor that holds these numbers and says that it is there."""
        found: There = torch.Tensor._make_subclass(There, held.detach(), False)
        found.where = where
        return found

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it says that it is."""
        return self.where

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """Whether that is an NVIDIA card."""
        return self.where.type == "cuda"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            twin = There.put(_plain(self).clone(), self.where)
            memo[id(self)] = nn.Parameter(twin, self.requires_grad) if isinstance(self, nn.Parameter) else twin
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"a tensor of {tuple(self.shape)} on {self.where}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        device = Device.active[-1] if Device.active else None
        if device is None:
            raise DeviceMismatch(f"{func} outside of the device")
        return device.run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self.to = device

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        tensor = args[0] if args else None
        if isinstance(tensor, There) and name in ("cpu", "numpy", "tolist", "pin_memory", "is_pinned"):
            if name in ("numpy", "pin_memory"):
                raise DeviceMismatch(f"{name}() of a tensor on {tensor.device}")
            if name == "is_pinned":
                return False
            self.to.waited(name)
            with torch._C.DisableTorchFunction(), self.to.asked():
                copy = torch.ops.aten._to_copy.default(tensor, device=HERE)
            return copy.tolist() if name == "tolist" else copy
        if name == "pin_memory" and isinstance(tensor, torch.Tensor):
            return tensor
        if name == "to" and isinstance(tensor, torch.Tensor):
            return self.move(tensor, args[1:], kwargs)
        device = kwargs.get("device")
        if device is not None and torch.device(device) == META:
            return func(*args, **kwargs)
        if device is not None and not isinstance(tensor, nn.Module) and torch.device(device) != HERE:
            # A factory: made in memory, then put there.
            target = self.to.where if torch.device(device).type == self.to.where.type else torch.device(device)
            hollow = self.to.hollow and target == self.to.where
            kwargs["device"] = META if hollow else HERE
            with torch._C.DisableTorchFunction(), self.to.silent():
                made = func(*_mapped(_held, args), **kwargs)
            self.to.possible(made, func)
            if hollow:
                self.to.weigh(made)
            return There.put(made, target).requires_grad_(made.requires_grad)
        if device is not None and torch.device(device) == HERE and isinstance(tensor, There):
            with torch._C.DisableTorchFunction(), self.to.silent():
                return func(*_mapped(_held, args), **kwargs)
        return func(*args, **kwargs)

    def move(self, tensor: torch.Tensor, rest: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for value in rest:
            if isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, torch.Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, (str, torch.device)):
                device = value
        device = tensor.device if device is None else torch.device(device)
        if device.type == self.to.where.type:
            device = self.to.where
        dtype = dtype or tensor.dtype
        if device == tensor.device and dtype == tensor.dtype and not kwargs.get("copy"):
            return tensor
        if device != tensor.device and isinstance(tensor, There):
            self.to.waited("to")
        with torch._C.DisableTorchFunction(), self.to.asked():
            result: torch.Tensor = torch.ops.aten._to_copy.default(
                tensor, dtype=dtype, device=device, non_blocking=bool(kwargs.get("non_blocking"))
            )
        return result


class Device(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While the body runs there is such a device, ``cuda:0`` or ``mps:0``.

    Attributes:
        where: The device.
        waits: How often the processor waited for it, by operation.
        places: The line of Stillroom that each of them came from.
        hollow: Whether it holds shapes alone.
        bytes: Of live storages there; counted on a hollow device only.
        peak: The most that they were; set it to ``bytes`` to begin anew.
        peak_at: The line of Stillroom that made the peak.
    """

    active: ClassVar[list[Device]] = []

    def __init__(self, where: str, *, hollow: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.where = torch.device(where)
        self.hollow = hollow
        self.bytes = 0
        self.peak = 0
        self.peak_at = ""
        self._weighed: dict[int, Any] = {}
        self.waits: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self._functions = _Functions(self)
        self._silent = False
        self._asked = False

    def __enter__(self) -> Device:
        Device.active.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        self._functions.__enter__()  # type: ignore[no-untyped-call]
        self._swapped = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        return self

    def __exit__(self, *error: Any) -> None:
        torch.__future__.set_swap_module_params_on_conversion(self._swapped)
        self._functions.__exit__(*error)  # type: ignore[no-untyped-call]
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        Device.active.pop()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """No rules while the body runs."""
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """The body carries something between processor and device; autograd's own copies only change formats."""
        before, self._asked = self._asked, True
        try:
            yield
        finally:
            self._asked = before

    def waited(self, what: str) -> None:
        """The processor waits for the device."""
        if self._silent:
            return
        self.waits[what] += 1
        if line := _line():
            self.places[line] += 1

    def weigh(self, tensor: Any) -> None:
        """Count a tensor's storage until nothing holds it any more."""
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._weighed:
            return
        size = -(-storage.nbytes() // ROUND) * ROUND
        self.bytes += size
        if self.bytes > self.peak:
            self.peak = self.bytes
            self.peak_at = _line()

        def forget() -> None:
            self._weighed.pop(key, None)
            self.bytes -= size

        self._weighed[key] = weakref.finalize(storage, forget)

    def _hollow(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], leaves: bool) -> Any:
        """An operation on shapes. What depends on numbers gets plausible ones."""
        if name == "aten::_local_scalar_dense":
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if name == "aten::equal":
            return True
        args, kwargs = _mapped(_shape, args), _mapped(_shape, kwargs)
        if name == "aten::nonzero":
            (whole,) = args
            rows = whole.shape[0] if whole.dim() else 1
            count = min(whole.numel(), rows * FOUND if whole.dim() > 1 else rows)
            return torch.empty(count, whole.dim(), dtype=torch.int64, device=META)
        if name in ("aten::zeros_like", "aten::ones_like", "aten::empty_like"):
            out = torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=META)
            self.weigh(out)
            return out
        if leaves:
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": META}
        out = func(*args, **kwargs)
        _mapped(self.weigh, out)
        return out

    def possible(self, tensor: Any, func: Any) -> None:
        """Refuse what the device cannot hold."""
        if self.where.type == "mps" and isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
            raise DeviceMismatch(f"{func} makes float64, which {self.where} does not have")

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation, by the rules, on what the tensors hold."""
        name = func.name().split(".")[0] if not func.name().startswith("aten::set_") else func.name()
        tensors = [*_tensors(args), *_tensors(kwargs)]
        there = any(isinstance(value, There) for value in tensors)
        target: torch.device | None = kwargs.get("device")
        if name == "aten::_to_copy" and there and not self._asked:
            target = None
            kwargs = {key: value for key, value in kwargs.items() if key != "device"}
        elif target is not None and target.type != "meta":
            kwargs = {**kwargs, "device": HERE}
        if not self._silent:
            self._agree(name, args, tensors)
        if there and (name in WAITS or (name in INDEXING and _by_mask(args))):
            self.waited(name)
        with self.silent(), torch._C._DisableTorchDispatch():
            held, named = _mapped(_held, args), _mapped(_held, kwargs)
            comes = target is not None and target.type == self.where.type
            if self.hollow and (there or comes):
                leaves = target is not None and not comes and name == "aten::_to_copy"
                if name == "aten::copy_" and not isinstance(args[0], There):
                    return args[0]
                out = self._hollow(func, name, held, named, leaves)
            else:
                out = func(*held, **named)
        same = {id(_held(value)): value for value in tensors}
        goes = self.where if target is not None and target.type == self.where.type else None
        stays = target is not None and target.type == "cpu" and name == "aten::_to_copy"
        if name == "aten::copy_" or (goes is None and not stays and there):
            goes = args[0].device if name == "aten::copy_" else self.where

        def label(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if id(value) in same:
                return same[id(value)]
            if goes is None or goes.type == "cpu":
                return value
            self.possible(value, func)
            return There.put(value, goes)

        schema = func._schema
        if schema.name.endswith("_") and not schema.name.endswith("__") and args and isinstance(args[0], torch.Tensor):
            return args[0]
        if "out" in kwargs and isinstance(kwargs["out"], torch.Tensor):
            return kwargs["out"]
        return _mapped(label, out)

    def _agree(self, name: str, args: Any, tensors: list[torch.Tensor]) -> None:
        if name in BETWEEN:
            return
        if name in INDEXING:
            tensors = [args[0], *(value for value in args[1] if isinstance(value, There)), *_values(args)]
        if name in STRICT:
            for group in zip(*(value for value in args if isinstance(value, (list, tuple)) and value), strict=False):
                if len({value.device for value in group if isinstance(value, torch.Tensor)}) > 1:
                    raise DeviceMismatch(f"{name}: a step on the processor is read by a kernel of the device")
        strict = [value for value in tensors if value.dim() > 0 or isinstance(value, There)]
        devices = {value.device for value in strict}
        if len(devices) > 1:
            raise DeviceMismatch(f"{name}: operands on {' and '.join(sorted(map(str, devices)))}")


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """What an operation is given or gives, with every part changed: PyTorch's trees take longer than the operations."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_mapped(change, part) for part in value])
    if kind is dict:
        return {name: _mapped(change, part) for name, part in value.items()}
    return change(value)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those that an operation is given, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _shape(value: Any) -> Any:
    """A tensor's shape and strides, without numbers; single numbers of the processor stay."""
    if isinstance(value, torch.Tensor) and value.device.type != "meta" and value.dim():
        return value.to(META)
    return value


def _line() -> str:
    """The innermost line of Stillroom that is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        _, found, name = frame.f_code.co_filename.partition("/src/stillroom/")
        if found:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _values(args: Any) -> list[torch.Tensor]:
    return [value for value in args[2:] if isinstance(value, torch.Tensor)]


def _by_mask(args: Any) -> bool:
    """Whether an index is a mask, or lies on the processor."""
    return any(
        isinstance(value, torch.Tensor) and (value.dtype in (torch.bool, torch.uint8) or not isinstance(value, There))
        for value in args[1]
    )


def _held(value: Any) -> Any:
    if isinstance(value, There):
        with torch._C._DisableTorchDispatch():
            return _plain(value)
    return value


def _plain(value: There) -> torch.Tensor:
    held = value.__dict__.get("held")
    # Whoever assigns to `.data` puts another storage behind the same tensor.
    if held is None or held.dtype != value.dtype or held.shape != value.shape or held.data_ptr() != value.data_ptr():
        held = torch.Tensor._make_subclass(torch.Tensor, value, False)
        value.__dict__["held"] = held
    return held


def move(model: Any, device: Device) -> Any:
    """Put a model's weights and buffers there, in place; tied ones stay tied."""
    moved: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in moved:
                there = There.put(parameter.detach().clone(), device.where)
                moved[id(parameter)] = nn.Parameter(there, requires_grad=parameter.requires_grad)
            module._parameters[key] = moved[id(parameter)]
        for key, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[key] = There.put(buffer.detach().clone(), device.where)
    return model


def back(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's numbers, in memory."""
    return _plain(tensor).detach().clone() if isinstance(tensor, There) else tensor.detach()
