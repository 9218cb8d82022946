"""Mutation testing of the kernels: `python tests/mutate.py [FILE ...]` changes one operation at a time, as `<` to `<=`.

A mutant that fails no test shows what is not tested: an error, unless `equivalent_mutants.toml` says why it computes
the same. Mutants live in forked processes only; files stay as they are. Those tests that kill fastest run first.

Of the tools for Python, mutmut leaves decorated functions alone, Cosmic Ray starts a process for every mutant.
"""

import argparse
import ast
import copy
import importlib
import linecache
import multiprocessing
import os
import resource
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
FILES = ("kernels/batch_norm.py", "kernels/shrink.py", "kernels/srm_scan.py")
TESTS = (
    "test_sanitizer.py::test_batch_norm_is_clean",
    "test_sanitizer.py::test_a_split_that_holds_part_of_one_tile_is_clean",
    "test_sanitizer.py::test_the_scan_is_clean",
    "test_batch_norm.py",
    "test_srm_scan.py",
    "test_parameters.py",
    "test_shrink.py",
    "test_properties.py",
    "test_affine.py",
    "test_traffic.py::test_batch_norm_reads_no_tile_twice",
    "test_traffic.py::test_batch_norm_launches_once_where_it_is_small",
)
# other backends; and what takes long and notices nothing that others do not
LEFT_OUT = "[reference or -reference or [native or -native or gradcheck or opcheck or what_is_saved or same_bits"
SCORE = 0.97  # of the mutants of a file, how many must be killed; the others are equivalent
MEMORY = 8 << 30  # bytes that a mutant may take
# how a test fails: an assertion, another exception, out of time, the process ends; or no test fails
OUTCOMES = ("wrong", "raises", "late", "crashes", "survives")
INSTEAD = """Add Sub, Sub Add, Mult Add, Pow Mult, Div Mult, FloorDiv Mult, Mod FloorDiv, BitAnd BitOr, BitOr BitAnd,
    And Or, Or And, Lt LtE GtE, LtE Lt Gt, Gt GtE LtE, GtE Gt Lt, Eq NotEq, NotEq Eq, Is IsNot, IsNot Is"""
OPERATORS = {name: others for name, *others in map(str.split, INSTEAD.split(","))}
OPPOSITE = {"tl.minimum": "tl.maximum", "tl.maximum": "tl.minimum", "min": "max", "max": "min"}
FORK = multiprocessing.get_context("fork")

Place = tuple[str, int]  # a file's name and a line


def changed(node: ast.AST, **fields: Any) -> Any:
    node = copy.copy(node)
    vars(node).update(fields)
    return node


def head(statement: ast.stmt) -> str:
    """A statement in one line; of a compound one, its head."""
    return ast.unparse(statement).split("\n")[0]


def others(operator: ast.AST) -> list[ast.AST]:
    return [getattr(ast, name)() for name in OPERATORS[type(operator).__name__]]


def operations(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in place of a node: another operation, or none."""
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        yield from (changed(node, op=op) for op in others(node.op))
    match node:
        case ast.BinOp(left, ast.BitAnd(), right):
            yield from (left, right)
        case ast.AugAssign() | ast.Expr(ast.Call()):
            yield ast.Pass()
        case ast.Compare(ops=[operator]):
            yield from (changed(node, ops=[op]) for op in others(operator))
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield from map(ast.Constant, (value + 1, value - 1) if value else (1,))
        case ast.Constant(float(value)):
            yield from map(ast.Constant, (0.0, 2 * value) if value else (1.0,))
        case ast.If(test) | ast.IfExp(test) if not isinstance(test, ast.Compare):
            yield changed(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Subscript(slice=ast.Tuple([first, second])):
            yield changed(node, slice=ast.Tuple([second, first]))
        case ast.keyword("mask", mask):
            yield changed(node, value=ast.BinOp(mask, ast.BitOr(), ast.Constant(True)))
            yield changed(node, value=ast.UnaryOp(ast.Invert(), mask))
        case ast.Call(function, arguments):
            yield from calls(node, ast.unparse(function), arguments)


def calls(node: ast.Call, name: str, arguments: list[ast.expr]) -> Iterator[ast.AST]:
    """What may stand in place of a call: other bounds, the opposite, arguments in another order."""
    if name in ("range", "tl.static_range"):
        stop = min(len(arguments) - 1, 1)
        for op in (ast.Add(), ast.Sub()):
            bound = ast.BinOp(arguments[stop], op, ast.Constant(1))
            yield changed(node, args=[*arguments[:stop], bound, *arguments[stop + 1 :]])
    elif name in OPPOSITE:
        yield changed(node, func=ast.parse(OPPOSITE[name], mode="eval").body)
        yield from arguments
    elif name == "tl.where" or isinstance(node.func, ast.Name):
        for i in range(1, len(arguments) - 1):  # behind the condition, or the pointer, which is added to what follows
            yield changed(node, args=[*arguments[:i], arguments[i + 1], arguments[i], *arguments[i + 2 :]])


def variants(node: ast.AST) -> Iterator[Any]:
    """Copies of a node in which one operation differs; of a compound statement, in its head only."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.arange":
        return  # of another length, which fits nowhere
    yield from operations(node)
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.AST) and name != "annotation":
            yield from (changed(node, **{name: other}) for other in variants(value))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, ast.expr | ast.keyword):
                    yield from (changed(node, **{name: [*value[:i], v, *value[i + 1 :]]}) for v in variants(item))


class Mark(ast.NodeTransformer):
    """Puts before each statement a call that notes it as reached."""

    def __init__(self, file: str) -> None:
        self.file = file

    def visit(self, node: ast.AST) -> Any:
        node = self.generic_visit(node)
        if not isinstance(node, ast.stmt) or isinstance(node, ast.ImportFrom):
            return node
        return [*ast.parse(f"_reach({(self.file, node.lineno)})").body, node]


class Swap(ast.NodeTransformer):
    """Puts one statement in the place of another."""

    def __init__(self, old: ast.stmt, new: ast.stmt) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


class File:
    """A source file of kernels."""

    def __init__(self, name: str) -> None:
        self.path = Path(name).resolve()
        self.tree = ast.parse(self.path.read_text())
        self.module = importlib.import_module(f"srm_triton.kernels.{self.path.stem}")
        if not self.path.samefile(str(self.module.__file__)):
            raise SystemExit(f"{self.path} is not the installed {self.module.__file__}")

    def install(self, tree: ast.AST) -> None:
        """Puts changed functions into the module, with their source, which Triton's interpreter reads."""
        source, path = ast.unparse(ast.fix_missing_locations(tree)), str(self.path)
        linecache.cache[path] = (len(source), None, source.splitlines(True), path)
        exec(compile(source, path, "exec"), vars(self.module))

    def mutants(self, launchers: bool) -> "Iterator[Mutant]":
        """Those of the jit functions, or else of the others."""
        classes = [node for node in self.tree.body if isinstance(node, ast.ClassDef)]
        for function in [*self.tree.body, *(node for scope in classes for node in scope.body)]:
            if not isinstance(function, ast.FunctionDef):
                continue
            if launchers == any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list):
                continue
            bound = {argument.arg for argument in function.args.args}
            statements = [node for node in ast.walk(function) if isinstance(node, ast.stmt) and node is not function]
            seen = Counter[str]()
            for statement in sorted(statements, key=lambda node: node.lineno):
                line = head(statement)
                seen[line] += 1
                name = function.name + f"#{seen[line]}" * (seen[line] > 1)  # the same line, a second time
                found = list(variants(statement))
                if isinstance(statement, ast.Assign):
                    names = {node.id for node in ast.walk(statement.targets[0]) if isinstance(node, ast.Name)}
                    found += [ast.Pass()] if names <= bound else []  # else its absence is a NameError
                    bound |= names
                mutants = (Mutant(self, name, statement, replacement) for replacement in found)
                yield from {mutant.key: mutant for mutant in mutants}.values()


@dataclass
class Mutant:
    """A statement of a function and what stands in its place."""

    file: File
    function: str
    statement: ast.stmt
    replacement: ast.stmt
    outcome: str = ""

    def __post_init__(self) -> None:
        before, after = head(self.statement), head(self.replacement)
        self.key = f"{self.function}: {before} → {after}"
        self.place = self.file.path.name, self.statement.lineno
        self.text = f"{self.file.path.relative_to(ROOT)}:{self.statement.lineno}\n    - {before}\n    + {after}"


class Runner:
    """A plugin for pytest: in place of the tests that it collected, runs them on each mutant."""

    def __init__(self, mutants: list[Mutant], jobs: int) -> None:
        self.mutants, self.jobs = mutants, jobs
        self.failure: type[BaseException] | None = None

    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
            self.failure = call.excinfo.type

    def run(self, item: pytest.Item) -> type[BaseException] | None:
        """Runs a test; the exception that it failed with."""
        self.failure = None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return self.failure

    def measure(self, items: list[pytest.Item]) -> list[tuple[float, frozenset[Place]] | None]:
        """For each test the seconds that it takes and the statements that it reaches, or None if it fails."""
        reached: set[Place] = set()
        for file in {mutant.file.path: mutant.file for mutant in self.mutants}.values():
            vars(file.module)["_reach"] = reached.add
            file.install(Mark(file.path.name).visit(file.tree))
        results: list[tuple[float, frozenset[Place]] | None] = []
        for item in items:
            reached.clear()
            start = time.process_time()
            failed = self.run(item)
            results.append(None if failed else (time.process_time() - start, frozenset(reached)))
        return results

    def try_out(self, mutant: Mutant, tests: list[tuple[float, pytest.Item]]) -> tuple[int, str]:
        """How many tests run on the mutant, up to one that fails, and how that does."""
        mutant.file.install(Swap(mutant.statement, mutant.replacement).visit(mutant.file.tree))
        for number, (seconds, item) in enumerate(tests, 1):
            signal.setitimer(signal.ITIMER_PROF, 5 + 5 * seconds)  # ends the process
            failure = self.run(item)
            if failure is not None:
                return number, "wrong" if issubclass(failure, AssertionError) else "raises"
        return len(tests), "survives"

    def fork(self, function: Callable[..., Any], *arguments: Any) -> tuple[BaseProcess, Connection]:
        """A copy of this process that calls the function and sends what it returns."""

        def call() -> None:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            sender.send(function(*arguments))

        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=call)
        process.start()
        sender.close()
        return process, receiver

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        from hypothesis import Phase, settings

        settings.register_profile("mutate", phases=[Phase.generate])  # a failure need not be made small
        settings.load_profile("mutate")
        parts = [session.items[i :: self.jobs] for i in range(self.jobs)]
        connections = [self.fork(self.measure, part)[1] for part in parts]
        results = [result for connection in connections for result in connection.recv()]
        measured = list(zip(chain.from_iterable(parts), results, strict=True))
        if failing := [item.nodeid for item, result in measured if result is None]:
            pytest.exit(f"without a mutant {failing} fail", returncode=1)

        runs, kills = Counter[tuple[str, pytest.Item]](), Counter[tuple[str, pytest.Item]]()
        waiting = self.mutants[::-1]
        running: dict[Any, tuple[Mutant, BaseProcess, list[tuple[float, pytest.Item]]]] = {}
        while running or waiting:
            while waiting and len(running) < self.jobs:
                mutant = waiting.pop()
                tests = [(seconds, item) for item, (seconds, reached) in measured if mutant.place in reached]
                ranks = {
                    item: seconds * (runs[mutant.function, item] + 2) / (kills[mutant.function, item] + 1)
                    for seconds, item in tests
                }  # the expected seconds until it kills a mutant of this function
                tests.sort(key=lambda test: ranks[test[1]])
                process, connection = self.fork(self.try_out, mutant, tests)
                running[connection] = mutant, process, tests
            finished: list[Any] = wait(list(running))
            for ready in finished:
                mutant, process, tests = running.pop(ready)
                try:
                    number, mutant.outcome = ready.recv()
                    runs.update((mutant.function, item) for _, item in tests[:number])
                    kills[mutant.function, tests[number - 1][1]] += mutant.outcome != "survives"
                except EOFError:
                    process.join()
                    mutant.outcome = "late" if process.exitcode == -signal.SIGPROF else "crashes"
            counts = Counter(mutant.outcome for mutant in self.mutants)
            print(f"\r{counts['survives']} survive, {counts['']} to go ", end="", flush=True)
        return True


def report(mutants: list[Mutant], only: str) -> bool:
    """Prints what became of the mutants; whether all is well."""
    entries = tomllib.loads(EQUIVALENT.read_text())["equivalent"]
    reasons = {key: entry["reason"] for entry in entries for key in entry["mutants"]}
    survivors = {mutant.key: mutant for mutant in mutants if mutant.outcome == "survives"}
    for key, mutant in survivors.items():
        print(f"\n{mutant.text}\n    {reasons.get(key, 'NOT EXPLAINED')}")
    complaints = [f"not explained: {key}" for key in survivors.keys() - reasons.keys()]
    functions = {mutant.function for mutant in mutants}
    stale = [key for key in reasons.keys() - survivors.keys() if key.split(":")[0] in functions and only in key]
    complaints += [f"{EQUIVALENT.name} explains what is killed or does not occur: {key}" for key in stale]
    print(f"\n{'':24}{'mutants':>10}{'killed':>10}", *(f"{outcome:>10}" for outcome in OUTCOMES), sep="")
    for file, group in groupby(mutants, lambda mutant: mutant.file):
        counts = Counter(mutant.outcome for mutant in group)
        score = 1 - counts["survives"] / counts.total()
        print(f"{file.path.name:24}{counts.total():10}{score:10.1%}", *(f"{counts[o]:10}" for o in OUTCOMES), sep="")
        if score < SCORE and not only:
            complaints.append(f"{file.path.name}: less than {SCORE:.0%} killed")
    print(*complaints, sep="\n")
    return not complaints


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=FILES, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--launchers", action="store_true", help="mutate the functions that are no kernels instead")
    parser.add_argument("--only", default="", metavar="TEXT", help="mutate statements with this text only")
    arguments = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "1"
    import torch
    import torch._dynamo

    torch.set_num_threads(1)  # threads do not survive a fork
    found = [mutant for name in arguments.files for mutant in File(name).mutants(arguments.launchers)]
    mutants = [mutant for mutant in found if arguments.only in mutant.key]
    tests = [f"{ROOT}/tests/{test}" for test in TESTS]
    options = ["-q", "-s", "--tb=native", "-p", "no:xdist", "-p", "no:faulthandler", "-k", f"not ({LEFT_OUT})"]
    failed = pytest.main([f"--rootdir={ROOT}", *options, *tests], plugins=[Runner(mutants, arguments.jobs)])
    return int(failed or not report(mutants, arguments.only))


if __name__ == "__main__":
    sys.exit(main())
