"""Reads machine code: what stands in the loop over the codes, counted for each score."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

# the pipe of 64 lanes a clock: comparisons, selections, integer and bit work, conversions
HALF_RATE = re.compile(
    r"FSETP|FSEL|SEL|P?LOP3|V?IMNMX3?|FMNMX3?|HMNMX2|ISETP|LEA|SHF|IADD3|VIADD|PRMT|F2FP?|I2FP?|"
    r"P2R|R2P|MOV|SGXT|BMSK"
)
MATRIX = re.compile(r"HGMMA|HMMA|UTC\w*MMA")
_LINE = re.compile(
    r"/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P[T\d]\s+|@!?UPT\s+)?([A-Z0-9]+)((?:\.\w+)*)\s*(.*?)\s*;"
)


class Instruction(NamedTuple):
    address: int
    name: str
    modifiers: str
    operands: str


class Loop(NamedTuple):
    """Instructions of one turn of the loop over the tiles of codes, for each score of a thread."""

    half_rate: float
    every: float
    shuffles: int  # of the whole turn
    matrix: int
    waits: int  # for matrix products of a warpgroup


def instructions(text: str) -> list[Instruction]:
    found = [Instruction(int(a, 16), *rest) for a, *rest in _LINE.findall(text)]
    assert found, "no instruction was read: has the format of cuobjdump changed?"
    return found


def score_loop(text: str, elements: float, turns: int) -> Loop:
    """The loop that holds matrix products and comparisons.

    Args:
        text: what ``cuobjdump -sass`` prints.
        elements: scores of one thread in one turn.
        turns: of the loop over blocks of channels inside, where there is one.
    """
    code = instructions(text)
    bodies = sorted((body for body in _loops(code) if _names(body, MATRIX)), key=len)
    # the loop over blocks of channels compares nothing
    inner = next((body for body in bodies[:1] if not _names(body, re.compile("[FI]MNMX3?"))), [])
    body = bodies[1 if inner else 0]
    weights = {i.address: turns for i in inner}
    half_rate = sum(weights.get(i.address, 1) for i in body if HALF_RATE.fullmatch(i.name))
    every = sum(weights.get(i.address, 1) for i in body)
    names = Counter(i.name for i in body)
    matrix = sum(weights.get(i.address, 1) for i in body if MATRIX.fullmatch(i.name))
    waits = sum(
        weights.get(i.address, 1)
        for i in body
        if i.name == "WARPGROUP" and i.modifiers.startswith(".DEPBAR")
    )
    return Loop(half_rate / elements, every / elements, names["SHFL"], matrix, waits)


def _names(body: list[Instruction], pattern: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(i.name) for i in body)


def _loops(code: list[Instruction]) -> list[list[Instruction]]:
    """What lies between the target of each jump back and the jump."""
    found = []
    for last in code:
        target = re.search(r"0x([0-9a-f]+)", last.operands) if last.name == "BRA" else None
        if target and int(target[1], 16) < last.address:
            start = int(target[1], 16)
            found.append([i for i in code if start <= i.address <= last.address])
    return found
