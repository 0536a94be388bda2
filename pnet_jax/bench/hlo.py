"""Floating-point operations and collectives of a compiled program, parsed from its text and multiplied by the trip counts of loops.

XLA's own `cost_analysis` counts the body of a loop once. Here, it counts once per iteration if the compiler knows the trip count;
`unknown_loops` is the number of loops for which it does not.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any, NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast")
_ARITHMETIC = re.compile(
    "add|subtract|multiply|divide|maximum|minimum|power|negate|abs|sqrt|rsqrt|cbrt|exponential|exponential-minus-one|log|log-plus-one|"
    "tanh|atanh|logistic|sine|cosine|tan|atan2|erf|floor|ceil|remainder|round-nearest-even"
)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


class Counts(NamedTuple):
    """Counts for one run on one device.

    Attributes:
      matmul: Floating-point operations in matrix products.
      arithmetic: Floating-point operations elsewhere: one per element, also for transcendental functions.
      collectives: Number of executions of each kind of collective.
      written: Number of occurrences of each kind in the text; one inside a loop of twelve steps counts once.
      unknown_loops: Number of loops whose trip count is not in the text; their bodies count once.
    """

    matmul: int
    arithmetic: int
    collectives: dict[str, int]
    written: dict[str, int]
    unknown_loops: int

    @property
    def flop(self) -> int:
        return self.matmul + self.arithmetic


class _Instruction(NamedTuple):
    type: str
    opcode: str
    rest: str  # operands and attributes


def read(compiled: Any) -> Counts:
    """Count the operations of a compiled step, `jax.jit(f).lower(...).compile()`.

    >>> import jax, jax.numpy as jnp
    >>> step = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda _, y: y @ x, x))
    >>> read(step.lower(jnp.ones((4, 4))).compile()).matmul  # 10 products of 2 · 4³
    1280
    """
    computations, entry = _parse(compiled.as_text() or "")
    work: Counter[str] = Counter()
    executed: Counter[str] = Counter()
    written: Counter[str] = Counter()

    def walk(name: str, times: int) -> None:
        instructions = computations.get(name, {})
        for one in instructions.values():
            kind = one.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                executed[kind] += times
                written[kind] += 1
            elif one.opcode == "while":
                steps = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', one.rest)
                work["unknown_loops"] += steps is None
                walk(_called(one.rest, "body"), times * (int(steps[1]) if steps else 1))
            elif one.opcode in ("fusion", "call", "async-start"):
                walk(_called(one.rest, "calls|to_apply"), times)
            elif one.opcode == "conditional":
                for branch in re.findall(r"%([\w.\-]+)", _called(one.rest, "branch_computations", r"\{[^}]*\}")):
                    walk(branch, times)
            work["matmul"] += times * _matmul(one, instructions)
            work["arithmetic"] += times * _arithmetic(one, instructions)

    walk(entry, 1)
    return Counts(work["matmul"], work["arithmetic"], dict(executed), dict(written), work["unknown_loops"])


def _parse(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            current[found[1]] = _Instruction(found[2], found[3], found[4])
    return computations, entry


def _called(rest: str, attribute: str, value: str = r"%[\w.\-]+") -> str:
    found = re.search(rf"\b(?:{attribute})=({value})", rest)
    return found[1].removeprefix("%") if found else ""


def _sizes(shape: str) -> list[int]:
    """Return the dimensions of the first array in a type."""
    found = _SHAPE.search(shape)
    return [int(n) for n in found[2].split(",") if n] if found else []


def _is_float(shape: str) -> bool:
    found = _SHAPE.search(shape)
    return found is not None and found[1].startswith(("f", "bf", "c"))


def _operand(one: _Instruction, instructions: dict[str, _Instruction], place: int = 0) -> str:
    """Return the type of an operand; the first one by default."""
    names = re.findall(r"%([\w.\-]+)", one.rest)
    return instructions[names[place]].type if len(names) > place and names[place] in instructions else ""


def _matmul(one: _Instruction, instructions: dict[str, _Instruction]) -> int:
    if one.opcode == "convolution":  # how TPUs represent matrix products
        labels, kernel = re.search(r"dim_labels=\w+_(\w+)->", one.rest), _sizes(_operand(one, instructions, 1))
        summed = [size for size, label in zip(kernel, labels[1], strict=True) if label != "o"] if labels and kernel else []
    elif one.opcode == "dot" or (one.opcode == "custom-call" and "gemm" in one.rest):  # the latter is the GPU vendor's library
        over = re.search(r'"?lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"]*)[}\]]', one.rest)
        left = _sizes(_operand(one, instructions))
        summed = [left[int(n)] for n in over[1].replace('"', "").split(",") if n] if over and left else []
    else:
        return 0
    return 2 * math.prod(_sizes(one.type)) * math.prod(summed)


def _arithmetic(one: _Instruction, instructions: dict[str, _Instruction]) -> int:
    if _ARITHMETIC.fullmatch(one.opcode) and _is_float(one.type):
        return math.prod(_sizes(one.type))
    if one.opcode in ("reduce", "reduce-window") and _is_float(one.type):
        return math.prod(_sizes(_operand(one, instructions)))
    return 0
