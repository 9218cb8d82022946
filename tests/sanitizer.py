"""A sanitizer for kernels that run in Triton's interpreter: `with sanitized(*outputs): launch` raises KernelError where

- a load or store leaves the elements of the tensor that its pointer was made from;
- a program touches a byte that another one writes, or lanes of one store write different values to one element;
- a masked lane of a load without `other` reaches a result;
- a tensor that is named as an output or that is written at all is not written whole, or an output is read before that;
- the programs, run forward, reversed and shuffled, do not give the same bits;
- 32-bit integers overflow, or a device assert fails.

It also rounds to bfloat16 as GPUs do, to nearest even, where the interpreter truncates.

Each tensor argument gets an address range of its own, far from all others, so no access strays from one into the next.
Not seen: races between the threads of one program, accesses by another element type than the tensor's, and launches in
other processes.

As a pytest plugin it checks every launch of the tests that are marked `sanitized`, and with `--sanitize` of all others
too, but for those marked `unsanitized`.
"""

import inspect
import linecache
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import numpy as np
import pytest
import torch
import triton
from torch import Tensor
from triton import language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle, interpreter_builder

from srm_triton.kernels import launch

REGION_BITS = 40  # of the address range of a tensor argument; its storage starts where the range does
ATOMICS = -1  # stands for all programs alike: atomic accesses do not race with each other
POISONS = (0xFF, 0x5A)  # bytes of NaN and -1, and of large numbers; what is not used cannot tell them apart
INSIDE_TRITON = (str(Path(triton.__file__).parent), __file__)

Program = tuple[int, int, int]


class KernelError(AssertionError):
    """A defect of a kernel, with the kernel's name and where one access shows it, its source line and program."""


class Memory:
    """A storage, and for each byte which program has written and read it in the current run: its number, 0 if none."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.address = storage.data_ptr()
        self.content = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).numpy()
        self.initial = self.content.copy()
        self.restart()

    def restart(self) -> None:
        self.content[:] = self.initial
        # the first and the last reader differ if there are several, and a write then races with one of them
        self.writer, self.first_reader, self.last_reader = np.zeros((3, len(self.content)), np.int32)


@dataclass(frozen=True)
class Argument:
    """A tensor argument of a launch."""

    name: str
    tensor: Tensor
    memory: Memory
    is_output: bool

    def elements(self, flags: np.ndarray) -> Tensor:
        """A view [*shape, bytes of an element] of `flags`, one for each byte of the storage."""
        size, tensor = self.tensor.element_size(), self.tensor
        strides = [size * stride for stride in tensor.stride()]
        return torch.from_numpy(flags).as_strided([*tensor.shape, size], [*strides, 1], size * tensor.storage_offset())

    def first_element(self, flags: np.ndarray) -> list[int] | None:
        """The index of the first element with a flagged byte."""
        found = self.elements(flags).any(-1).nonzero()
        return found[0].tolist() if len(found) else None

    @cached_property
    def starts(self) -> np.ndarray:
        """Whether an element starts at a byte of the storage."""
        flags = np.zeros(len(self.memory.content), bool)
        flags[self.elements(np.arange(len(flags)))[..., 0].flatten()] = True
        return flags


class Launch(GridExecutor):
    """A launch in place of the interpreter's own: runs the programs in several orders and looks at each access."""

    def __init__(self, outputs: frozenset[int], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.outputs = outputs
        self.arguments: list[Argument] = []
        self.memories: dict[int, Memory] = {}
        self.program = 0
        self.states_other = False
        self.poison = POISONS[0]
        self.poisoned = ""

    def __call__(self, *arguments: Any, **options: Any) -> None:
        options = {name: value for name, value in options.items() if name in self.arg_names}
        values = inspect.getcallargs(self.fn, *arguments, **options)
        values = {name: self.convert(name, value) for name, value in values.items()}
        grid = self.grid(values) if callable(self.grid) else self.grid
        grid = (*grid, *(1,) * (3 - len(grid)))
        programs = list(np.ndindex(grid))
        interpreter_builder.set_grid_dim(*grid)

        self.run(values, programs)
        self.check_written()
        expected = {address: memory.content.copy() for address, memory in self.memories.items()}
        if self.poisoned:
            self.poison = POISONS[1]
            self.run(values, programs)
            self.compare(expected, f"depends on masked lanes of a load without `other`, {self.poisoned}")
            self.poison = POISONS[0]
        for name, order in (
            ("reversed", programs[::-1]),
            ("shuffled", random.Random(0).sample(programs, len(programs))),
        ):
            if order != programs:
                self.run(values, order)
                self.compare(expected, f"is different where the programs run {name}")

    def convert(self, name: str, value: Any) -> Any:
        """An argument as the kernel takes it."""
        annotation = self.fn.__annotations__.get(name)
        if name in self.constexprs:
            return value
        if isinstance(value, tuple):
            return interpreter._tuple_create(value, (self.convert(name, item) for item in value))
        if isinstance(annotation, tl.dtype) and isinstance(value, int):  # the interpreter would take the narrowest type
            data = np.array([value], interpreter._get_np_dtype(annotation))
            return tl.tensor(TensorHandle(data, annotation), annotation)
        converted = interpreter._implicit_cvt(value)
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            address = storage.data_ptr()
            if address not in self.memories:
                self.memories[address] = Memory(storage)
            self.arguments.append(Argument(name, value, self.memories[address], address in self.outputs))
            offset = value.storage_offset() * value.element_size()
            converted.handle.data[0] = (len(self.arguments) << REGION_BITS) + offset
        return converted

    def run(self, values: dict[str, Any], programs: list[Program]) -> None:
        """Runs the programs, on the tensors as they were before the launch."""
        for memory in self.memories.values():
            memory.restart()
        scope = interpreter._patch_lang(self.fn)
        hooks = {
            "create_masked_load": self.load,
            "create_masked_store": self.store,
            "create_atomic_rmw": self.atomic_rmw,
            "create_atomic_cas": self.atomic_cas,
            "create_assert": self.check_assert,
            "options": replace(interpreter_builder.options, debug=True),
        }
        try:
            semantic = interpreter.interpreter_semantic
            with patch.multiple(interpreter_builder, **hooks), patch.object(semantic, "load", self.semantic_load):
                for program in programs:
                    self.program = 1 + int(np.ravel_multi_index(program, interpreter_builder.grid_dim))
                    interpreter_builder.set_grid_idx(*program)
                    self.fn(**values)
        except InterpreterError as error:  # each call of a function by a kernel wraps what it raises
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise cause from None
        finally:
            scope.restore()

    def semantic_load(self, pointers: Any, mask: Any, other: Any, *options: Any) -> Any:
        self.states_other = other is not None  # of a single element, the interpreter forgets an `other` of 0
        return type(interpreter.interpreter_semantic).load(
            interpreter.interpreter_semantic, pointers, mask, other, *options
        )

    def load(self, pointers: TensorHandle, mask: Any, other: TensorHandle | None, *options: Any) -> TensorHandle:
        active = np.asarray(mask.data, bool)
        true = self.visit(pointers, active, "reads", self.program)
        if other is None and not self.states_other and not active.all():
            self.poisoned = self.poisoned or self.line()
            dtype = interpreter._get_np_dtype(pointers.get_element_ty())
            poison = np.full(dtype.itemsize, 1 if dtype.kind == "b" else self.poison, np.uint8).view(dtype)
            other = TensorHandle(np.full(active.shape, poison), pointers.get_element_ty())
        return InterpreterBuilder.create_masked_load(interpreter_builder, true, mask, other, *options)

    def store(self, pointers: TensorHandle, value: TensorHandle, mask: Any, *options: Any) -> None:
        active = np.asarray(mask.data, bool)
        true = self.visit(pointers, active, "writes", self.program)
        InterpreterBuilder.create_masked_store(interpreter_builder, true, value, mask, *options)
        stored = InterpreterBuilder.create_masked_load(interpreter_builder, true, mask, None, None, None, False)
        if stored.data[active].tobytes() != np.broadcast_to(value.data, active.shape)[active].tobytes():
            self.fail("lanes of one store write different values to one element")

    def atomic_rmw(self, operation: Any, pointers: TensorHandle, value: Any, mask: Any, *options: Any) -> TensorHandle:
        true = self.visit(pointers, np.asarray(mask.data, bool), "writes", ATOMICS)
        return InterpreterBuilder.create_atomic_rmw(interpreter_builder, operation, true, value, mask, *options)

    def atomic_cas(self, pointers: TensorHandle, *options: Any) -> TensorHandle:
        true = self.visit(pointers, np.ones_like(pointers.data, bool), "writes", ATOMICS)
        return InterpreterBuilder.create_atomic_cas(interpreter_builder, true, *options)

    def check_assert(self, condition: TensorHandle, message: str) -> None:
        if not condition:
            self.fail(message)

    def visit(self, pointers: TensorHandle, active: np.ndarray, verb: str, program: int) -> TensorHandle:
        """Checks and notes an access of the `active` lanes; the pointers into memory."""
        addresses = pointers.data.astype(np.int64)
        numbers = (addresses + (1 << REGION_BITS - 1)) >> REGION_BITS
        true = np.zeros_like(pointers.data)
        for number in np.unique(numbers[active]).tolist():
            if not 0 < number <= len(self.arguments):
                self.fail(f"{verb} at an address that comes from no tensor")
            argument = self.arguments[number - 1]
            lanes = active & (numbers == number)
            places = addresses[lanes] - (number << REGION_BITS)
            self.check_bounds(argument, places, verb)
            self.check_races(argument, places, verb, program)
            true[lanes] = places + argument.memory.address
        return TensorHandle(true, pointers.dtype)

    def check_bounds(self, argument: Argument, places: np.ndarray, verb: str) -> None:
        exists = (places >= 0) & (places < len(argument.starts))
        exists[exists] = argument.starts[places[exists]]
        if not exists.all():
            tensor = argument.tensor
            distance = places[~exists][0] / tensor.element_size() - tensor.storage_offset()
            layout = f"shape {list(tensor.shape)} and strides {list(tensor.stride())}"
            self.fail(f"{verb} `{argument.name}` at offset {distance:g}, where {layout} have no element")

    def check_races(self, argument: Argument, places: np.ndarray, verb: str, program: int) -> None:
        memory = argument.memory
        touched = (places[:, None] + np.arange(argument.tensor.element_size())).ravel()
        writer, first, last = memory.writer[touched], memory.first_reader[touched], memory.last_reader[touched]
        if verb == "writes":
            rivals = [("writes", writer), ("reads", first), ("reads", last)]
            memory.writer[touched] = program
        else:
            rivals = [("writes", writer)]
            memory.first_reader[touched] = np.where(first == 0, program, first)
            memory.last_reader[touched] = program
        for rival_verb, rival in rivals:
            raced = (rival != 0) & (rival != program)
            if raced.any():
                self.fail(f"{verb} `{argument.name}` where {self.describe(rival[raced][0])} {rival_verb}")
        if verb == "reads" and argument.is_output and not writer.all():
            self.fail(f"reads the output `{argument.name}` before it is written")

    def check_written(self) -> None:
        for argument in self.arguments:
            unwritten = argument.memory.writer == 0
            element = argument.first_element(unwritten)
            if element is not None and (argument.is_output or argument.first_element(~unwritten) is not None):
                raise KernelError(f"{self.fn.__name__}: `{argument.name}`{element} is not written")

    def compare(self, expected: dict[int, np.ndarray], message: str) -> None:
        for argument in self.arguments:
            element = argument.first_element(argument.memory.content != expected[argument.memory.address])
            if element is not None:
                raise KernelError(f"{self.fn.__name__}: `{argument.name}`{element} {message}")

    def describe(self, program: int) -> str:
        if program == ATOMICS:
            return "an atomic operation"
        return f"program {tuple(map(int, np.unravel_index(program - 1, interpreter_builder.grid_dim)))}"

    def line(self) -> str:
        """The line of the kernel, or of the function called by it, that is being run."""
        frame = sys._getframe()
        while frame.f_code.co_filename.startswith(INSIDE_TRITON):
            frame = frame.f_back
        file, number = frame.f_code.co_filename, frame.f_lineno
        return f"{Path(file).name}:{number} `{linecache.getline(file, number).strip()}`"

    def fail(self, message: str) -> NoReturn:
        program = tuple(interpreter_builder.grid_idx)
        raise KernelError(f"{self.fn.__name__}, program {program}, {self.line()}: {message}")


def _convert_float(values: np.ndarray, source: tl.dtype, target: tl.dtype, rounding: Any, convert: Any) -> np.ndarray:
    if (source, target) == (tl.float32, tl.bfloat16):
        return torch.tensor(values).to(torch.bfloat16).view(torch.uint16).numpy()
    return convert(values, source, target, rounding)


@contextmanager
def _hooked(*outputs: Tensor) -> Iterator[None]:
    storages = frozenset(output.untyped_storage().data_ptr() for output in outputs)
    convert_float = partial(_convert_float, convert=interpreter._convert_float)
    with (
        patch.object(interpreter, "GridExecutor", partial(Launch, storages)),
        patch.object(interpreter, "_convert_float", convert_float),
    ):
        yield


@triton.jit
def _stray(x, operation: tl.constexpr):
    if operation == "load":
        tl.load(x + 1)
    elif operation == "store":
        tl.store(x + 1, 1)
    elif operation == "atomic_add":
        tl.atomic_add(x + 1, 1)
    elif operation == "atomic_cas":
        tl.atomic_cas(x + 1, 0, 1)
    elif operation == "device_assert":
        tl.device_assert(tl.load(x) == 1)


@cache
def check_interpreter() -> None:
    """Raises unless bad accesses are seen: what the sanitizer replaces and calls is private to Triton's interpreter."""
    if not launch.interpreted():
        raise RuntimeError("the sanitizer sees interpreted kernels only: set TRITON_INTERPRET=1")
    for operation in ("load", "store", "atomic_add", "atomic_cas", "device_assert"):
        cause = None
        try:
            with _hooked():
                _stray[(1,)](torch.zeros(1, dtype=torch.int32), operation)
        except KernelError:
            continue
        except Exception as error:
            cause = error
        problem = f"the sanitizer does not see a bad {operation} in the interpreter of Triton {triton.__version__}"
        raise RuntimeError(f"{problem}; it was written for Triton 3.7") from cause


@contextmanager
def sanitized(*outputs: Tensor) -> Iterator[None]:
    """Checks every launch; arguments that share a storage with one of `outputs` count as outputs."""
    check_interpreter()
    with _hooked(*outputs):
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sanitize", action="store_true", help="check every launch of a kernel in Triton's interpreter")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sanitized: every launch in Triton's interpreter is checked")
    config.addinivalue_line("markers", "unsanitized(reason): no launch is checked, even with --sanitize")


@pytest.fixture(autouse=True)
def _sanitizer(request: pytest.FixtureRequest) -> Iterator[None]:
    asked = request.config.getoption("sanitize")
    by_default = launch.interpreted() and request.node.get_closest_marker("sanitized")
    chosen = (asked or by_default) and not request.node.get_closest_marker("unsanitized")
    with sanitized() if chosen else nullcontext():
        yield
